"""Pages of the example: their numbers are the store's, their links lead to pages, and content stays out of them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from urllib.parse import unquote

import polars as pl
import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.reports.fleet_page import API_MODEL, conversation_address
from kv_pipeline.reports.summary import api_table, validation_table
from kv_pipeline.reports.write import ReportOptions, write_reports
from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.schemas.requests import SEGMENTS
from kv_pipeline.store import Store
from kv_pipeline_tests.reports.test_page import Document

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr", "--virtual-time-budget=15000", "--window-size=1400,6000", "--dump-dom",
]  # fmt: skip


@pytest.fixture(scope="module")
def index(written):
    return Document(written.index.read_text("utf-8"))


def column(document, frame, name):
    return document.data["frames"][frame][name]


def test_a_page_per_conversation(example, written):
    keys = example.partitions(TRACES.name)
    assert [str(page.relative_to(written.index.parent / "conversations")) for page in written.pages] == [
        f"{key}.html" for key in keys
    ]
    assert written.n_requests == example.read(TRACES, keys).height
    assert written.pictures == []


def test_links_lead_to_the_pages_and_back(written, index):
    found = [written.index.parent / unquote(href) for href in column(index, "conversations", "href")]
    assert found == written.pages
    for page in written.pages:
        home = next(v for _, name, v in Document(page.read_text("utf-8")).attributes if v.endswith("index.html"))
        assert (page.parent / home).resolve() == written.index.resolve()


@pytest.mark.parametrize(
    ("key", "address"),
    [("ada/s", "conversations/ada/s.html"), ("a%2Fb/#?", "conversations/a%252Fb/%23%3F.html")],
)
def test_addresses_are_quoted(key, address):
    assert conversation_address(key) == address


def test_numbers_on_pages_are_those_of_the_tables(example, written):
    for key, path in zip(example.partitions(TRACES.name), written.pages, strict=True):
        document = Document(path.read_text("utf-8"))
        report = example.read(CACHE_REPORT, [key.partition("/")[0]]).filter(pl.col("conversation_id") == key)
        for name in ("billed_read_tokens", "billed_write_5m_tokens", "billed_input_tokens", "lost_tokens"):
            assert column(document, "requests", name) == report.sort("request_index")[name].to_list(), name
        lost = report.filter(pl.col("lost_tokens") > 0, pl.col("cause") != "new_content")
        shown = sum(column(document, "causes", "lost_tokens")) if "causes" in document.data["frames"] else 0
        assert shown == lost["lost_tokens"].sum()


def test_index_sums_its_conversations(written, index):
    n_requests = [len(column(Document(p.read_text("utf-8")), "requests", "model")) for p in written.pages]
    assert column(index, "conversations", "n_requests") == n_requests
    assert f"{sum(n_requests):,}" in [text for (tag, _), text in index.texts if tag == "b"]


def test_rates_are_those_that_validate_prints(example, index):
    shown = {name: column(index, "rates", name) for name in ("model", "scope", "lifetime", "simulated_hit_rate")}
    rates = {key: rate for *key, rate in zip(*shown.values(), strict=True) for key in [tuple(key)]}
    for row in validation_table(example, ["model"]).iter_rows(named=True):
        key = row["model"], row["scope"], row["lifetime"]
        assert rates.pop(key) == pytest.approx(row["simulated_hit_rate"], rel=1e-5)
    report = example.read(CACHE_REPORT, example.partitions(CACHE_REPORT.name))
    for row in api_table(report, ["model"]).iter_rows(named=True):
        assert rates.pop((row["model"], API_MODEL, "as marked")) == pytest.approx(row["predicted_hit_rate"], rel=1e-5)
    assert rates == {}


def test_the_definition_of_hit_rate_is_on_every_page(written):
    for path in (written.index, *written.pages):
        assert "hit rate = cache read / (input + cache read + cache write)" in path.read_text("utf-8")


def test_no_content_is_in_pages(example, written):
    """No text of a segment, not even eight words of one, is in a page."""
    pages = [path.read_text("utf-8") for path in (written.index, *written.pages)]
    texts = example.read(SEGMENTS, example.partitions(SEGMENTS.name))["text"].drop_nulls()
    pieces = {piece for text in texts for piece in re.findall(r"(?:[A-Za-z]+[ ,]+){7}[A-Za-z]+", text)}
    assert len(pieces) > 100
    assert [piece for piece in pieces if any(piece in page for page in pages)] == []


def test_the_same_store_gives_the_same_bytes(example, prices, written, tmp_path):
    again = write_reports(example, tmp_path / "again", ReportOptions(prices))
    assert digests(again) == digests(written)


def digests(result):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (result.index, *result.pages)]


def test_one_conversation_with_pictures(example, prices, tmp_path):
    key = example.partitions(TRACES.name)[0]
    result = write_reports(example, tmp_path / "one", ReportOptions(prices, with_png=True), [key])
    assert len(result.pages) == 1
    assert {path.suffix for path in result.pictures} == {".png"}
    names = {path.name for path in result.pictures if key in str(path)}
    assert {"block_timeline.png", "hit_rate.png", "cumulative_tokens.png", "ttl_curve.png"} <= names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in result.pictures)


def test_reuse_beyond_prefixes_when_asked_for(example, prices, index, tmp_path):
    assert "content_reuse" not in index.data["frames"]
    keys = example.partitions(TRACES.name)[:2]
    result = write_reports(example, tmp_path / "reuse", ReportOptions(prices, with_content_reuse=True), keys)
    shown = Document(result.index.read_text("utf-8")).data["frames"]["content_reuse"]
    assert shown["conversation_id"] == keys
    parts = zip(shown["prefix_share"], shown["repeated_share"], shown["new_share"], strict=True)
    assert [sum(shares) for shares in parts] == pytest.approx([1, 1], abs=1e-5)


def test_progress_counts_conversations(example, prices, tmp_path):
    done = []
    keys = example.partitions(TRACES.name)[:2]
    write_reports(example, tmp_path / "two", ReportOptions(prices), keys, done.append)
    assert done == [1, 1]


def test_an_empty_store_is_told(tmp_path, prices):
    with pytest.raises(UsageError, match="no conversations yet"):
        write_reports(Store.open(tmp_path / "store"), tmp_path / "out", ReportOptions(prices))


def test_a_folder_that_can_not_be_written_is_named(example, prices, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file.*Name another --out"):
        write_reports(example, tmp_path / "file", ReportOptions(prices))


def test_no_temporary_file_is_left(written):
    assert [path for path in written.index.parent.rglob("*") if path.name.startswith(".tmp-")] == []


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed, so no page is opened")
def test_pages_open_and_draw_without_network_or_errors(written, tmp_path):
    for number, path in enumerate((written.index, written.pages[0])):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / str(number)}", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
        document = Document(done.stdout)
        drawn = [v for tag, name, v in document.attributes if name == "data-figure"]
        assert document.tags.count("canvas") == len(drawn) > 5
        assert "problem" not in [v for _, name, v in document.attributes if name == "class"]
        assert document.tags.count("tbody") == len(document.data["tables"])
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
