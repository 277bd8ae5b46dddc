"""The block timeline against a classification block by block."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.reports.frames.timeline import RECTANGLES, STATES, block_rectangles

_SCHEMA = {
    "request_index": pl.UInt32, "agent_id": pl.String, "n_blocks": pl.UInt32, "agent_shared_blocks": pl.UInt32,
    "hit_blocks": pl.UInt32,
}  # fmt: skip


def frame(*rows):
    """Rows of (agent, blocks, kept, hit)."""
    return pl.DataFrame([(index, *row) for index, row in enumerate(rows)], schema=_SCHEMA, orient="row")


@st.composite
def conversations(draw):
    before = {}
    rows = []
    for _ in range(draw(st.integers(0, 8))):
        agent = draw(st.sampled_from(["main", "a", "b"]))
        n_blocks = draw(st.integers(0, 9))
        kept = draw(st.integers(0, min(n_blocks, before.get(agent, 0))))
        rows.append((agent, n_blocks, kept, draw(st.integers(0, n_blocks))))
        before[agent] = n_blocks
    return rows


def states_of(n_blocks, kept, hit, before):
    """State of each position, one by one."""
    for position in range(max(n_blocks, before)):
        if position >= n_blocks:
            yield "dropped"
        elif position < kept:
            yield "cached" if position < hit else "kept_uncached"
        elif position < hit:
            yield "cached_by_others"
        else:
            yield "rewritten" if position < before else "added"


@given(conversations())
def test_rectangles_are_the_runs_of_equal_states(rows):
    found = block_rectangles(frame(*rows))
    before = {}
    for index, (agent, n_blocks, kept, hit) in enumerate(rows):
        expected = list(states_of(n_blocks, kept, hit, before.get(agent, 0)))
        mine = found.filter(pl.col("request_index") == index)
        drawn = [state for _, _, state, start, end in mine.iter_rows() for _ in range(start, end)]
        assert drawn == expected
        assert mine.height <= len(STATES) - 1
        assert mine["from_block"].to_list() == sorted(mine["from_block"])
        before[agent] = n_blocks


def test_a_compaction_drops_what_was_not_kept():
    found = block_rectangles(frame(("main", 10, 0, 0), ("main", 4, 2, 2)))
    second = found.filter(pl.col("request_index") == 1).select("state", "from_block", "to_block").rows()
    assert second == [("cached", 0, 2), ("rewritten", 2, 4), ("dropped", 4, 10)]


def test_no_requests_no_rectangles():
    found = block_rectangles(frame())
    assert (found.height, dict(found.schema)) == (0, RECTANGLES)
