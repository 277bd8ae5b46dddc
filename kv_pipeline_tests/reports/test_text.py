"""Statistics as text: the numbers are the frames', and nothing reads as NaN."""

from __future__ import annotations

import re

import polars as pl
import pytest

from kv_pipeline.core.reuse_curves import LIFETIME_TABLE_S
from kv_pipeline.errors import UsageError
from kv_pipeline.reports.frames.sums import totals
from kv_pipeline.reports.text import Statistics, statistics, table, text
from kv_pipeline.reports.texts import count, dollars, duration, percent, short_count
from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.steps.reuse import fleet_reuse_frames
from kv_pipeline.store import Store
from kv_pipeline_tests.reports.factories import request, requests


@pytest.fixture(scope="module")
def found(example, prices):
    return statistics(example, prices)


def fact(printed, label):
    return re.search(rf"^{re.escape(label)} +(.*)$", printed, re.MULTILINE)[1]


def test_totals(found):
    printed = text(found)
    total = totals(found.requests).row(0, named=True)
    assert fact(printed, "requests, of them billed") == f"{total['n_requests']}, {total['n_billed']}"
    assert fact(printed, "hit rate billed") == f"{total['billed_hit_rate']:.2%}"
    assert fact(printed, "hit rate simulated (blocks model)") == f"{total['simulated_hit_rate']:.2%}"
    assert fact(printed, "reads predicted to the token") == f"{total['exact_share']:.2%}"
    assert fact(printed, "output tokens") == f"{found.requests['output_tokens'].sum():,}"
    assert fact(printed, "max") == f"{found.requests['context_tokens'].max():,}"
    assert "hit rate = cache read / (input + cache read + cache write)" in printed


def test_lifetimes_from_a_minute_to_a_day(example, found):
    printed = text(found)
    curve = fleet_reuse_frames(example).ttl_curve
    for row in curve.iter_rows(named=True):
        line = re.search(rf"^{row['lifetime']} .*$", printed, re.MULTILINE)[0].split()
        assert line[2] == f"{row['hit_rate']:.2%}"
        assert line[4] == f"{row['prefill_blocks']:,}"
    assert next(iter(LIFETIME_TABLE_S)) == "1m"
    assert "24h" in LIFETIME_TABLE_S


def test_every_model_and_cause_has_a_line(found):
    printed = text(found)
    for model in found.requests["model"].unique():
        assert re.search(rf"^{re.escape(model)} ", printed, re.MULTILINE)
    causes = found.requests.filter(pl.col("lost_tokens") > 0)["cause"].unique()
    assert len(causes)
    for cause in causes:
        assert re.search(rf"^{cause.replace('_', ' ')} ", printed, re.MULTILINE)


def test_only_the_named_conversation(example, prices):
    key = example.partitions(TRACES.name)[0]
    assert statistics(example, prices, [key]).requests["conversation_id"].unique().to_list() == [key]


def test_nothing_billed_gives_zeros_not_nan(found):
    unbilled = requests(request(0, billed_read_tokens=None, cost_usd=None, prompt_tokens=0, hit_tokens=0))
    printed = text(Statistics(unbilled, 0, found.ttl_curve))
    assert fact(printed, "hit rate billed") == "0.00%"
    assert "nan" not in printed.lower().replace("finance", "")


def test_an_empty_store_is_told(tmp_path, prices):
    with pytest.raises(UsageError, match="no conversations yet"):
        statistics(Store.open(tmp_path / "store"), prices)


def test_table_aligns_numbers_to_the_right():
    assert table(("name", "n"), [("a", "1"), ("long name", "1,000")]) == (
        "name           n\na              1\nlong name  1,000"
    )


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (percent(0.12345), "12.35%"), (percent(None), "-"), (dollars(0.00012), "$0.0001"),
        (dollars(1234.5), "$1,234.50"), (dollars(-1), "-$1.0000"), (dollars(None), "-"), (count(1234.4), "1,234"),
        (short_count(999), "999"),
        (short_count(12_345), "12.35 k"), (short_count(2_500_000), "2.50 M"), (short_count(3e9), "3.00 B"),
        (duration(3), "3.0 s"), (duration(90), "1.5 min"), (duration(7200), "2.0 h"), (duration(172_800), "2.0 d"),
    ],
)  # fmt: skip
def test_numbers_for_people(printed, expected):
    assert printed == expected
