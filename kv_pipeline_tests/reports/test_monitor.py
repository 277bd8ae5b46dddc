"""The monitor: sums of what was billed, names of rates, breakpoints, and recommendations that follow from losses."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from kv_pipeline.core.causes import UNAVOIDABLE, Cause
from kv_pipeline.errors import UsageError
from kv_pipeline.reports.monitor import Period, breakpoints, monitor, overview, recommendations, status
from kv_pipeline.reports.remedies import REMEDIES, SCENARIO_OF
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS, CONVERSATIONS
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline_tests.factories import at
from kv_pipeline_tests.reports.factories import request, requests

NO_SCENARIOS = pl.DataFrame(schema={"scenario_id": pl.String, "saved_usd": pl.Float64})
EVERYTHING = Period()


@pytest.fixture(scope="module")
def found(example, prices):
    return monitor(example, prices, EVERYTHING)


def billed_rows(store):
    """Rows of the databases that paid for traced requests, straight from the tables."""
    placed = store.read(CONVERSATION_REQUESTS, store.partitions(CONVERSATIONS.name))
    raw = store.read(RAW_REQUESTS, store.partitions(RAW_REQUESTS.name))
    keys = {"left_on": ["database_id", "billed_row_id"], "right_on": ["database_id", "row_id"]}
    return placed.join(raw, **keys).drop_nulls("input_tokens")


@pytest.mark.parametrize(
    ("rate", "name"),
    [(1, "excellent"), (0.8001, "excellent"), (0.8, "good"), (0.6, "good"), (0.5999, "fair"), (0.4, "fair"),
     (0.3999, "poor"), (0, "poor")],
)  # fmt: skip
def test_status(rate, name):
    assert status(rate) == name


def test_overview_is_the_sum_of_the_rows_that_paid(example, found):
    rows = billed_rows(example)
    shown = found["overview"]
    read = rows["cache_read_tokens"].sum()
    prompt = sum(rows[f"{kind}_tokens"].sum() for kind in ("input", "cache_read", "cache_write_5m", "cache_write_1h"))
    assert shown["n_events"] == rows.height
    assert shown["n_hits"] == rows.filter(pl.col("cache_read_tokens") > 0).height
    assert shown["n_misses"] == shown["n_events"] - shown["n_hits"]
    assert (shown["saved_tokens"], shown["prompt_tokens"]) == (read, prompt)
    assert shown["hit_rate"] == pytest.approx(read / prompt)
    assert shown["average_saved_tokens_per_hit"] == pytest.approx(read / shown["n_hits"])
    assert shown["savings_usd"] == pytest.approx(shown["original_cost_usd"] - shown["cached_cost_usd"])


def test_nothing_is_zero_and_poor_not_nan(example, prices):
    empty = monitor(example, prices, Period(since=at(1e9)))
    shown = empty["overview"]
    numbers = {name: value for name, value in shown.items() if isinstance(value, int | float)}
    assert set(numbers.values()) == {0}
    assert shown["status"] == "poor"
    assert (empty["causes"], empty["recommendations"]) == ([], [])
    json.dumps(empty, allow_nan=False)


def test_periods_split_events(example, prices, found):
    times = billed_rows(example)["requested_at_utc"].sort()
    middle = times[len(times) // 2]
    before = monitor(example, prices, Period(until=middle))["overview"]
    after = monitor(example, prices, Period(since=middle))["overview"]
    assert before["n_events"] == times.filter(times < middle).len() > 0
    assert before["n_events"] + after["n_events"] == found["overview"]["n_events"]
    assert before["saved_tokens"] + after["saved_tokens"] == found["overview"]["saved_tokens"]


def test_period_ends_before_its_end():
    frame = pl.DataFrame({"requested_at_utc": [at(0), at(1), at(2)]})
    assert frame.filter(Period(at(0), at(2)).holds()).height == 2
    assert frame.filter(Period(at(0) + timedelta(microseconds=1)).holds()).height == 2


def test_users_add_up(example, prices, found):
    users = example.partitions(CONVERSATIONS.name)
    events = [monitor(example, prices, EVERYTHING, user)["overview"]["n_events"] for user in users]
    assert sum(events) == found["overview"]["n_events"]
    with pytest.raises(UsageError, match=r"no user 'nobody'.*ada"):
        monitor(example, prices, EVERYTHING, "nobody")


def test_breakpoints_are_counted_by_place():
    markers = pl.DataFrame({"breakpoints": [["tools", "messages"], ["system"], [], ["tools", "system", "messages"]]})
    found = breakpoints(markers)
    assert [(row["n_requests"], row["share"]) for row in found] == [(3, 0.75), (2, 0.5), (1, 0.25), (0, 0)]
    assert found[0]["sections"] == {"system": 1, "tools": 2}
    assert found[1]["sections"] == {"messages": 1, "system": 1}
    assert {row["n_requests"] for row in breakpoints(markers.clear())} == {0}


def test_breakpoints_of_the_example_are_those_recorded(example, found):
    n_markers = billed_rows(example)["breakpoints"].list.len()
    assert [row["n_requests"] for row in found["breakpoints"]] == [int((n_markers >= n).sum()) for n in range(1, 5)]


def test_nothing_lost_nothing_recommended():
    lossless = requests(request(0, cause="cold"), request(1), request(2, cause="lifetime_passed", lost_tokens=0))
    assert recommendations(lossless, NO_SCENARIOS) == []


def test_recommendations_follow_the_losses_dearest_first():
    losses = requests(
        request(0, cause="tools_reordered", lost_tokens=900, lost_usd=0.1, divergence_section="tools"),
        request(1, cause="lifetime_passed", lost_tokens=500, lost_usd=0.5, gap_s=400.0),
        request(2, cause="lifetime_passed", lost_tokens=100, lost_usd=0.1, gap_s=600.0, agent_id="a"),
    )
    scenarios = pl.DataFrame({"scenario_id": ["as_sent", "lifetime_1h"], "saved_usd": [0.0, 0.4]})
    first, second = recommendations(losses, scenarios)
    assert (first["cause"], first["lost_tokens"], first["n_requests"]) == ("lifetime_passed", 600, 2)
    assert (first["remedy"], first["predicted_saving_usd"]) == (REMEDIES[Cause.LIFETIME_PASSED], 0.4)
    assert (first["evidence"]["median_gap_s"], first["evidence"]["n_agents"]) == (500.0, 2)
    assert first["evidence"]["dearest"] == {"conversation_id": "ada/s", "request_index": 1, "lost_tokens": 500}
    assert (second["cause"], second["evidence"]["sections"]) == ("tools_reordered", {"tools": 1})
    assert second["predicted_saving_usd"] is None


def test_a_remedy_that_would_not_pay_is_not_recommended():
    losses = requests(request(1, cause="lifetime_passed", lost_tokens=500, lost_usd=0.5, gap_s=400.0))
    scenarios = pl.DataFrame({"scenario_id": ["lifetime_1h"], "saved_usd": [-0.1]})
    (found,) = recommendations(losses, scenarios)
    assert found["predicted_saving_usd"] == -0.1
    assert "would cost more" in found["remedy"]


def test_every_cause_that_can_be_helped_has_its_own_remedy():
    helpable = set(Cause) - UNAVOIDABLE
    assert set(REMEDIES) == helpable
    assert len(set(REMEDIES.values())) == len(helpable)
    assert set(SCENARIO_OF) <= helpable


def test_requests_without_price_are_counted_not_guessed():
    shown = overview(requests(request(0), request(1, model="other", cost_usd=None, cost_without_caching_usd=None)))
    assert (shown["n_events_without_price"], shown["models_without_price"]) == (1, ["other"])
    assert (shown["original_cost_usd"], shown["cached_cost_usd"]) == (1.0, 0.25)


def documented_keys():
    page = (Path(__file__).parents[2] / "docs" / "monitor.md").read_text()
    return set(re.findall(r"^\| `([\w.\[\]]+)` \|", page, re.MULTILINE))


def paths(value, prefix=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}{key}"
            if not prefix.endswith("sections."):
                yield from paths(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, prefix.removesuffix(".") + "[].")


def test_every_key_is_documented_and_no_other(found):
    assert found["recommendations"]
    assert found["schema_version"] == 1
    keys = {path for path in paths(found) if ".sections." not in path}
    assert keys == documented_keys()
