from __future__ import annotations

from itertools import groupby

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.context import context_growth, turn_growth, window_crossings, with_prompt_tokens
from kv_pipeline_tests.factories import at

KNOWN, UNKNOWN = "claude-opus-4-5-20251101", "claude-opus-9"  # the first has a window of 200,000 tokens
WINDOW_TOKENS = 200_000


def frame_of(rows):
    """Requests of (agent, prompt tokens, model, turn) in order of time."""
    seen = {}
    indices = [seen.__setitem__(agent, seen.get(agent, -1) + 1) or seen[agent] for agent, *_ in rows]
    agents, prompts, models, turns = zip(*rows, strict=True) if rows else [()] * 4
    return pl.DataFrame(
        {
            "conversation_id": pl.Series(["u/c"] * len(rows), dtype=pl.String),
            "request_index": pl.Series(range(len(rows)), dtype=pl.UInt32),
            "agent_id": pl.Series(agents, dtype=pl.String),
            "agent_request_index": pl.Series(indices, dtype=pl.UInt32),
            "turn_index": pl.Series(turns, dtype=pl.UInt32),
            "model": pl.Series(models, dtype=pl.String),
            "requested_at_utc": pl.Series([at(s) for s in range(len(rows))], dtype=pl.Datetime("us", "UTC")),
            "prompt_tokens": pl.Series(prompts, dtype=pl.UInt32),
        }
    )


def requests_of(*prompts, model=KNOWN):
    return [("main", tokens, model, 0) for tokens in prompts]


rows_of = st.lists(
    st.tuples(
        st.sampled_from(["main", "a"]),
        st.sampled_from([0, 100, 149_999, 150_000, 156_000, 159_999, 160_000, 180_000, 250_000]),
        st.sampled_from([KNOWN, UNKNOWN]),
        st.just(0),
    ),
    max_size=12,
)


def by_agent(rows):
    """Per agent, by name, its requests in order."""
    return [(agent, list(group)) for agent, group in groupby(sorted(rows, key=lambda row: row[0]), lambda row: row[0])]


@given(rows_of)
def test_growth_and_share(rows):
    expected = []
    for agent, group in by_agent(rows):
        for before, (_, tokens, model, _) in zip([None, *(row[1] for row in group)], group, strict=False):
            growth = None if before is None else tokens - before
            share = pytest.approx(tokens / WINDOW_TOKENS) if model == KNOWN else None
            expected.append((agent, tokens, growth, share))
    found = context_growth(frame_of(rows))
    assert found.select("agent_id", "prompt_tokens", "growth_tokens", "context_share").rows() == expected


@given(rows_of)
def test_crossings(rows):
    expected = []
    for agent, group in by_agent(rows):
        measured = [(i, row[1]) for i, row in enumerate(group) if row[2] == KNOWN]
        for (_, before), (index, tokens) in zip([(None, -1), *measured], measured, strict=False):
            reached = [percent for percent in (75, 78, 80, 90) if tokens >= WINDOW_TOKENS * percent // 100 > before]
            expected += [(agent, index, percent, tokens) for percent in reached]
    found = window_crossings(context_growth(frame_of(rows)))
    columns = ["agent_id", "agent_request_index", "threshold_percent", "prompt_tokens"]
    assert sorted(found.select(columns).rows()) == sorted(expected)


def test_a_level_is_crossed_again_after_it_was_left():
    growth = context_growth(frame_of(requests_of(150_000, 170_000, 20_000, 151_000)))
    found = window_crossings(growth, (75,)).select("agent_request_index", "prompt_tokens").rows()
    assert found == [(0, 150_000), (3, 151_000)]


def test_window_of_the_day_and_of_the_tag():
    rows = [*requests_of(1, model="claude-sonnet-4-6"), *requests_of(1, model="claude-sonnet-4-6[1m]")]
    later = frame_of(rows).with_columns(pl.col("requested_at_utc") + pl.duration(days=30))
    assert context_growth(frame_of(rows))["context_window_tokens"].to_list() == [200_000, 1_000_000]
    assert context_growth(later)["context_window_tokens"].to_list() == [1_000_000, 1_000_000]


def test_growth_by_turn():
    rows = [("main", 10, KNOWN, 0), ("a", 5, KNOWN, 0), ("main", 30, KNOWN, 0), ("main", 20, KNOWN, 1)]
    found = turn_growth(frame_of(rows)).drop("conversation_id").rows()
    assert found == [("a", 0, 1, 5, 5), ("main", 0, 2, 30, 30), ("main", 1, 1, 20, -10)]


@pytest.mark.parametrize("function", [context_growth, turn_growth])
def test_nothing_from_nothing(function):
    assert function(frame_of([])).height == 0


def test_prompts_without_usage_are_scaled_like_the_others_of_their_agent():
    rows = [("main", 100, 90), ("main", 300, 270), ("main", 200, None), ("a", 70, None), ("b", 0, 0), ("b", 5, None)]
    frame = pl.DataFrame(rows, schema=["agent_id", "counted_tokens", "input_tokens"], orient="row").with_columns(
        conversation_id=pl.lit("u/c"),
        cache_read_tokens=pl.col("input_tokens") * 0,
        cache_write_5m_tokens=pl.col("input_tokens") * 0,
        cache_write_1h_tokens=pl.col("input_tokens") * 0,
    )
    assert with_prompt_tokens(frame)["prompt_tokens"].to_list() == [90, 270, 180, 70, 0, 5]
