"""Sums, rates, causes and scenarios against plain sums; nothing is ever NaN."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.causes import Cause
from kv_pipeline.core.scenarios import Scenario
from kv_pipeline.reports.frames.money import causes, what_if
from kv_pipeline.reports.frames.requests import all_conversations
from kv_pipeline.reports.frames.sums import (
    gaps_s,
    growth_per_request,
    percentiles,
    phase_frame,
    totals,
    unpriced_models,
)
from kv_pipeline.reports.ratios import ratio, share
from kv_pipeline.reports.texts import money_note
from kv_pipeline.schemas.blocks import TRACES, VALIDATION_SUMMARY
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.explanations import CACHE_REPORT, WHAT_IF
from kv_pipeline.steps.fleet import FLEET
from kv_pipeline_tests.reports.factories import request, requests


def floats(frame):
    return [value for column in frame.select(pl.selectors.float()) for value in column]


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=6))
def test_totals_are_sums_over_billed_requests(rows):
    frame = requests(
        *(request(i, billed_read_tokens=read if is_billed else None) for i, (read, is_billed) in enumerate(rows))
    )
    total = totals(frame).row(0, named=True)
    reads = [read for read, is_billed in rows if is_billed]
    assert (total["n_requests"], total["n_billed"]) == (len(rows), len(reads))
    assert total["billed_hit_rate"] == pytest.approx(sum(reads) / (100 * len(reads)) if reads else 0)
    assert total["simulated_hit_rate"] == (0.5 if reads else 0)
    assert total["exact_share"] in (None, 1.0 if reads else 0.0)
    assert not any(value is not None and math.isnan(value) for value in floats(totals(frame)))


def test_totals_of_nothing_are_zeros():
    total = totals(requests()).row(0, named=True)
    assert {total[name] for name in ("n_requests", "billed_hit_rate", "simulated_hit_rate", "cost_usd")} == {0}
    assert total["predicted_hit_rate"] is None


def test_zero_tokens_give_zero_not_nan():
    frame = pl.DataFrame({"part": [0, 1, None], "whole": [0, 4, 4]})
    assert frame.select(share("part", "whole")).to_series().to_list() == [0.0, 0.25, None]
    assert (ratio(0, 0), ratio(1, 4)) == (0.0, 0.25)


def test_exact_share_counts_only_requests_that_use_caching():
    frame = requests(request(0, is_exact=False), request(1), request(2, uses_caching=False, is_exact=False))
    assert totals(frame)["exact_share"].to_list() == [0.5]


def test_causes_are_sums_dearest_first_without_what_is_new():
    frame = requests(
        request(0, cause="cold", lost_tokens=0),
        request(1, cause="lifetime_passed", lost_tokens=30, lost_usd=0.3),
        request(2, cause="lifetime_passed", lost_tokens=40, lost_usd=0.4),
        request(3, cause="tools_reordered", lost_tokens=30, lost_usd=None),
        request(4, cause="new_content", lost_tokens=7),
    )
    found = causes(frame).select("cause", "n_requests", "lost_tokens", "lost_usd", "lost_share", "is_avoidable").rows()
    assert found == [
        ("lifetime passed", 2, 70, pytest.approx(0.7), pytest.approx(0.7), True),
        ("tools reordered", 1, 30, 0.0, pytest.approx(0.3), True),
    ]


def test_every_cause_has_a_name_and_a_meaning():
    frame = requests(*(request(i, cause=cause.value, lost_tokens=1) for i, cause in enumerate(Cause)))
    found = causes(frame)
    assert set(found["cause_id"]) == {cause.value for cause in Cause} - {"new_content"}
    assert found.null_count().sum_horizontal().item() == 0


def test_what_if_compares_with_what_was_sent(prices):
    schema = polars_schema(WHAT_IF)
    rows = [
        {"conversation_id": "ada/s", "request_index": 0, "model": "claude-opus-5-5", "scenario": scenario.value,
         "predicted_read_tokens": read, "predicted_write_5m_tokens": 1000 - read, "predicted_write_1h_tokens": 0,
         "predicted_input_tokens": 0}
        for scenario, read in ((Scenario.STABLE_TOOLS, 900), (Scenario.AS_SENT, 400))
    ]  # fmt: skip
    found = what_if(pl.DataFrame(rows, schema=schema), requests(request(0)), prices)
    opus = next(row for row in prices if row.model == "claude-opus-5-5")
    difference = opus.write_5m_usd_per_mtok - opus.read_usd_per_mtok
    assert found["scenario_id"].to_list() == ["as_sent", "stable_tools"]
    assert found["saved_usd"].to_list() == pytest.approx([0, 500 * difference / 1e6])
    assert found["predicted_hit_rate"].to_list() == [0.4, 0.9]


def test_percentiles_of_numbers_and_of_nothing():
    assert percentiles(pl.Series(range(101))) == {"mean": 50, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    assert set(percentiles(pl.Series([], dtype=pl.Float64)).values()) == {0.0}


def test_growth_and_gaps_are_within_agents():
    frame = requests(
        request(0, t_s=0.0, growth_tokens=None),
        request(1, t_s=5.0, growth_tokens=None, agent_id="a"),
        request(2, t_s=7.0, growth_tokens=30),
        request(3, t_s=9.0, growth_tokens=-10, agent_id="a"),
    )
    assert growth_per_request(frame) == 10
    assert sorted(gaps_s(frame)) == [4.0, 7.0]
    assert growth_per_request(frame.head(1)) == 0


def test_models_without_price_are_named_where_they_were_billed():
    frame = requests(
        request(0), request(1, model="b", cost_usd=None), request(2, model="a", cost_usd=None),
        request(3, model="c", cost_usd=None, billed_read_tokens=None),
    )  # fmt: skip
    assert unpriced_models(frame) == ["a", "b"]
    assert money_note(["a", "b"]) == " No price is known of a, b: not in any sum of money."
    assert money_note([]) == ""


def test_phases_name_the_type_of_sub_agents():
    frame = requests(request(0), request(1, agent_id="a", phase="sub_agent", subagent_type="Explore"))
    assert phase_frame(frame)["phase"].to_list() == ["main", "sub agent: Explore"]


def test_the_example_has_a_row_per_traced_request_and_the_bills_of_the_roll_up(example, prices):
    keys = example.partitions(TRACES.name)
    found = pl.concat(each.requests for each in all_conversations(example, keys, prices))
    assert found.height == example.read(TRACES, keys).height
    assert found["predicted_read_tokens"].null_count() == 0
    summary = example.read(VALIDATION_SUMMARY, [FLEET]).filter(scope="conversation", lifetime="5m")
    total = totals(found).row(0, named=True)
    assert total["billed_read_tokens"] == summary["billed_read_tokens"].sum()
    assert total["billed_prompt_tokens"] == summary["billed_prompt_tokens"].sum()


def test_a_store_without_explanations_has_nulls_there(example, prices, tmp_path, monkeypatch):
    """Stores made before the attribution, or partly: everything else is shown."""
    key = example.partitions(TRACES.name)[0]
    user = key.partition("/")[0]
    path = example.path(CACHE_REPORT.name, user)
    hidden = path.rename(tmp_path / "hidden")
    try:
        found = next(all_conversations(example, [key], prices))
    finally:
        hidden.rename(path)
    assert not found.is_explained
    assert found.requests["lost_tokens"].null_count() == found.requests.height
    assert totals(found.requests)["predicted_hit_rate"].to_list() == [None]
