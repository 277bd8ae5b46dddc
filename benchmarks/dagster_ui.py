"""Time until pages of the Dagster UI show what they are for, in headless Chromium, with many conversations.

Run: ``python -m benchmarks.dagster_ui [CONVERSATIONS]``. The three partitioned assets of conversations are materialized
without work in the instance of an empty store, then `dagster dev` is started on it. Each page is opened in turn, four
times: the first time is shown apart, because the server loads definitions then; of the others the median. Storage is
SQLite, or PostgreSQL if KV_PIPELINE_POSTGRES_URL is set: name an empty database.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import dagster as dg

from benchmarks.dagster_events import QUIET
from kv_pipeline.defs.event_log import prepare_environment
from kv_pipeline.defs.instance import open_instance
from kv_pipeline.defs.jobs import CONVERSATION_ASSETS
from kv_pipeline.defs.partitions import CONVERSATIONS, RANGE_END, RANGE_START
from kv_pipeline_tests.ui.browser import CHROMIUM, DRIVER, Browser, dagster_dev, opened

REPEATS = 3
PAGES = {  # what is timed: (address, what is waited for)
    "asset": ("/assets/traces", "//*[text()='Row count']/following::*[text()='{n:,}']"),
    "partitions": ("/assets/traces?view=partitions", "//*[contains(translate(., ',', ''), 'Materialized ({n})')]"),
    "events": ("/assets/traces?view=events", "//*[contains(., 'materialized in run')]"),
    "lineage": ("/asset-groups", "//*[name()='foreignObject']//*[@data-tooltip='results']"),
    "runs": ("/runs", "//*[normalize-space()='Success']"),
}


def make_asset(name: str, upstream: list[str]) -> dg.AssetsDefinition:
    """An asset of the pipeline's name and partitions that does nothing."""

    @dg.asset(name=name, partitions_def=CONVERSATIONS, backfill_policy=dg.BackfillPolicy.single_run(), deps=upstream)
    def nothing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"dagster/row_count": len(context.partition_keys)})

    return nothing


def materialize(instance: dg.DagsterInstance, n_conversations: int) -> None:
    """Register conversations and record a materialization of each, in one run."""
    keys = [f"user-{number % 100:02d}/{number:08d}-0000-4000-8000-000000000000" for number in range(n_conversations)]
    instance.add_dynamic_partitions(str(CONVERSATIONS.name), keys)
    upstream = [[], *([name] for name in CONVERSATION_ASSETS)]
    assets = [make_asset(name, before) for name, before in zip(CONVERSATION_ASSETS, upstream, strict=False)]
    tags = {RANGE_START: keys[0], RANGE_END: keys[-1]}
    assert dg.materialize(assets, instance=instance, run_config=QUIET, tags=tags).success


def opened_s(browser: Browser, page: str, n_conversations: int) -> float:
    """Seconds from asking for a page until it shows what it is for."""
    address, shown = PAGES[page]
    browser.open("/server_info")  # a page of nothing, so that the next one is loaded anew
    start = time.perf_counter()
    browser.open(address)
    browser.see(shown.format(n=n_conversations))
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a line a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conversations", nargs="?", type=int, default=10_000)
    n = parser.parse_args().conversations
    if CHROMIUM is None or DRIVER is None:
        print("Chromium or its driver is not installed; nothing was timed.")
        return
    prepare_environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_instance(folder / "store") as instance:
            materialize(instance, n)
        places = {"KV_PIPELINE_STORE": str(folder / "store"), "KV_PIPELINE_INBOX": name}
        home = str(folder / "store" / "dagster")
        with dagster_dev(folder, DAGSTER_HOME=home, **places) as server, opened(server, folder) as browser:
            seconds = [{page: opened_s(browser, page, n) for page in PAGES} for _ in range(1 + REPEATS)]
    print(f"{n:,} conversations: page, seconds at first, median of {REPEATS}")
    for page in PAGES:
        median = statistics.median(times[page] for times in seconds[1:])
        print(f"{page:<12}{seconds[0][page]:>8.2f}{median:>8.2f}")


if __name__ == "__main__":
    main()
