"""A user's hour with the Dagster UI, in a real browser: what it shows of the example, and what its buttons do.

One test, because a server, its daemon and a browser take half a minute to start. Slow: about a minute, most of it
waiting for the daemon, which looks for backfills every 30 s. Pictures are in pytest's temporary folder.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from selenium.webdriver.common.by import By

from kv_pipeline.defs.instance import open_instance
from kv_pipeline.reports.figures import fleet
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.schemas.blocks import TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.store import Store
from kv_pipeline_tests.ui.browser import CHROMIUM, DRIVER, Browser, dagster_dev, opened

EXAMPLE = Path(__file__).parents[2] / "data/example"
USERS = ("grace", "hedy")
GROUPS = {
    "databases": ["raw_requests", "message_index"],
    "conversations": ["conversation_index", "tokenized_blocks"],
    "results": ["traces", "validation_report"],
}
CHAIN = [asset for assets in GROUPS.values() for asset in assets]
BOX = "//*[name()='foreignObject']"
FORGOTTEN = "grace/forgotten"
IMPOSSIBLE = {"KV_PIPELINE_ALERT_MATCH_RATE_WARN": "1.2", "KV_PIPELINE_ALERT_MATCH_RATE_ERROR": "1.1"}
"""More than all answers can't be found, so the check fails."""

Rect = dict[str, float]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="Chromium and its driver are not installed (chromium, chromium-driver), so the Dagster UI is not driven",
)


@dataclass
class Site:
    """A server, a browser on it, and what is behind it."""

    browser: Browser
    store: Store
    instance: dg.DagsterInstance

    @property
    def conversations(self) -> list[str]:
        return self.store.partitions(TRACES.name)

    def digests(self) -> dict[str, str]:
        paths = sorted(self.store.root.rglob("*.parquet"))
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def materialized(self) -> dict[tuple[str, str], int]:
        """Asset and partition to the event of its latest materialization."""
        return {
            (asset, key): event
            for asset in CHAIN
            for key, event in self.instance.get_latest_storage_id_by_partition(
                dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION
            ).items()
        }


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The example's smaller users, made as `kv-pipeline run` does, and a database that nobody read yet."""
    for variable in ("DAGSTER_HOME", "KV_PIPELINE_POSTGRES_URL", "KV_PIPELINE_BATCH_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    for user in USERS:
        shutil.copytree(EXAMPLE / user, tmp_path / "inbox" / user)
    store = Store.open(tmp_path / "store")
    bring_up_to_date(store, Inputs(tmp_path / "inbox"))
    places = {"KV_PIPELINE_INBOX": str(tmp_path / "inbox"), "KV_PIPELINE_STORE": str(store.root)}
    with open_instance(store.root) as instance:
        instance.add_dynamic_partitions("databases", [FORGOTTEN])
        home = str(store.root / "dagster")
        with dagster_dev(tmp_path, DAGSTER_HOME=home, **places, **IMPOSSIBLE) as server, opened(server, tmp_path) as b:
            yield Site(b, store, instance)


def test_a_user_looks_around_and_makes_partitions_again(site: Site, subtests: pytest.Subtests) -> None:
    before, files = site.materialized(), site.digests()
    chosen = site.conversations[1:3]
    with subtests.test("a backfill is launched"):
        launch_backfill(site.browser, "tokenized_blocks", chosen)
    with subtests.test("a run of one asset is launched"):
        launch_run(site.browser, "nightly_report")
    with subtests.test("the lineage has the assets in their groups, one after the other"):
        check_lineage(site.browser)
    with subtests.test("an asset's page has description, row count and every column, whole"):
        check_asset_page(site)
    with subtests.test("an asset's metadata has figures"):
        check_figures(site)
    with subtests.test("partitions and their states"):
        check_partitions(site)
    with subtests.test("what runs by itself is described, and off"):
        check_automation(site.browser)
    with subtests.test("a failed check is seen"):
        check_failed_check(site.browser)
    with subtests.test("the backfill ends; it made what was chosen, the same bytes, and nothing else"):
        wait_for_backfill(site.browser)
        after = site.materialized()
        assert {key for key in after if after[key] != before.get(key)} == {("tokenized_blocks", key) for key in chosen}
        assert site.digests() == files
    assert site.browser.errors() == []


def launch_backfill(browser: Browser, asset: str, keys: list[str]) -> None:
    browser.open(f"/assets/{asset}?view=partitions")
    browser.click("//button[normalize-space()='Materialize…']")
    browser.click("//*[@role='dialog']//*[text()='Select a partition or create one']")
    for key in keys:
        browser.click(f"//*[@role='menu']//label[.//span[text()='{key}']]//label")
    browser.picture("backfill-chosen")
    browser.click("//*[@role='dialog']//*[text()='Partition selection']")
    browser.see_text(f"{len(keys)} partitions")
    browser.click("//button[normalize-space()='Launch backfill']")
    browser.see("//*[contains(text(), 'Created backfill')]")
    browser.picture("backfill-launched")


def launch_run(browser: Browser, asset: str) -> None:
    browser.open(f"/assets/{asset}")
    browser.click("//button[normalize-space()='Materialize']")
    browser.see("//*[contains(text(), 'Launched run')]")
    browser.picture("run-launched")


def check_lineage(browser: Browser) -> None:
    browser.open("/asset-groups")
    for group, assets in GROUPS.items():
        browser.click(f"{BOX}//*[@data-tooltip='{group}']")
        browser.see(f"{BOX}//*[text()='{assets[-1]}']")
        browser.reload()  # fits the whole graph into the window again
    for asset in CHAIN:
        browser.see(f"{BOX}//*[text()='{asset}']")
    browser.picture("lineage")
    boxes = {box.text.partition("\n")[0]: box.rect for box in browser.all(BOX) if box.text}
    for group, assets in GROUPS.items():
        for asset in assets:
            assert is_inside(boxes[asset], boxes[group]), (asset, group)
    assert "nightly" in boxes
    arrows = [path.rect for path in browser.all("//*[name()='path'][@marker-end]")]
    assert sorted(ends(arrow, {asset: boxes[asset] for asset in CHAIN}) for arrow in arrows) == sorted(pairwise(CHAIN))


def check_asset_page(site: Site) -> None:
    browser = site.browser
    browser.open("/assets/raw_requests")
    browser.see_text("One row per API request of a database or log; content held once, as segments.")
    rows = site.store.read(RAW_REQUESTS, site.store.partitions(RAW_REQUESTS.name)).height
    browser.see(f"//*[text()='Row count']/following::*[text()='{rows}']")
    assert browser.texts("(//table)[1]/tbody/tr/td[1]") == list(RAW_REQUESTS.columns)
    browser.picture("asset")
    panel = browser.see_text("Definition").rect["x"]
    for cell in browser.all("(//table)[1]/tbody/tr/td[3]")[:5]:
        assert cell.rect["x"] + cell.rect["width"] < panel


def check_figures(site: Site) -> None:
    browser, last = site.browser, site.conversations[-1]
    browser.open(f"/assets/validation_report?view=partitions&partition={last.replace('/', '%2F')}")
    rows = site.store.read(VALIDATION_REPORT, site.store.partitions(VALIDATION_REPORT.name)).height
    browser.see(f"//tr[contains(., 'dagster/row_count')]//*[text()='{rows}']")
    browser.click("//a[text()='[Show Markdown]']")
    for figure in (fleet.MODELS, fleet.CAUSES_TOKENS, fleet.CONVERSATIONS):
        image = browser.see(f"//img[@alt='{figure.title}']")
        assert image.get_property("complete")
        assert image.get_property("naturalWidth") > 300
    browser.picture("figures")


def check_partitions(site: Site) -> None:
    browser, read = site.browser, site.store.partitions(RAW_REQUESTS.name)
    browser.open("/assets/raw_requests?view=partitions")
    browser.see(f"//*[contains(., 'Materialized ({len(read)})') and contains(., 'Missing (1)')]")
    titles = {element.get_attribute("title") for element in browser.all("//*[@title]")}
    assert {*read, FORGOTTEN} <= titles
    browser.click(f"//*[@title='{read[0]}']")
    browser.see("//tr[contains(., 'partitions_of_run')]")
    browser.picture("partitions")


def check_automation(browser: Browser) -> None:
    browser.open("/automation")
    for name in ("landing_sensor", "nightly_schedule", "freshness_sensor", "alert_sensor"):
        row = f"//*[@data-index][.//*[text()='{name}']]"
        switch = browser.see(f"{row}//label[contains(@class, 'formatSwitch')]")
        assert not switch.find_element(By.TAG_NAME, "input").is_selected(), name
    browser.picture("automation")


def check_failed_check(browser: Browser) -> None:
    browser.open("/assets/nightly_report?view=checks&checkDetail=match_rate")
    browser.see_text("Failed", "span")
    browser.see("//tr[contains(., 'error_at')]//*[text()='1.1']")
    browser.picture("failed-check")


def wait_for_backfill(browser: Browser) -> None:
    browser.open("/runs?view=backfills")
    browser.see("//*[contains(., 'tokenized_blocks')]//*[normalize-space()='Success']")
    browser.picture("backfill-done")


def ends(arrow: Rect, boxes: Mapping[str, Rect]) -> tuple[str, str]:
    """Names of the boxes that an arrow leads from and to: the nearest ones."""

    def distance(box: Rect, edge: float, point: float) -> float:
        return abs(edge - point) + abs(box["y"] + box["height"] / 2 - arrow["y"])

    tail, head = arrow["x"], arrow["x"] + arrow["width"]
    return (
        min(boxes, key=lambda name: distance(boxes[name], boxes[name]["x"] + boxes[name]["width"], tail)),
        min(boxes, key=lambda name: distance(boxes[name], boxes[name]["x"], head)),
    )


def is_inside(inner: Rect, outer: Rect) -> bool:
    return all(
        outer[edge] <= inner[edge] and inner[edge] + inner[size] <= outer[edge] + outer[size] + 1
        for edge, size in (("x", "width"), ("y", "height"))
    )
