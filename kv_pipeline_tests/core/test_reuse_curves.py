from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.reuse import measure_reuse
from kv_pipeline.core.reuse_curves import (
    BLOCK_PREFILLS,
    CAPACITY_CURVE,
    LIFETIME_TABLE_S,
    TTL_CURVE,
    WORKING_SET,
    WORKING_SET_SUMMARY,
    belady_hits,
    block_prefills,
    capacity_curve,
    lifetime_hits,
    lru_hits,
    power_of_two_capacities,
    resident_block_seconds,
    reuse_frames,
    smallest_capacities,
    ttl_curve,
    working_set,
    working_set_blocks,
    working_set_summary,
)
from kv_pipeline.core.simulate import Use
from kv_pipeline_tests import oracle, oracle_reuse

LIFETIMES = [0.0, 1.0, 3.0, 7.0, 20.0]
CAPACITIES = list(range(14))


def measured(uses, *, block_size=64, prompt_tokens=None, lifetimes=LIFETIMES):
    tokens = sum(len(path) * block_size for _, _, path in uses) if prompt_tokens is None else prompt_tokens
    arrays = [Use(cache, float(time), np.array(path, dtype=np.int64)) for cache, time, path in uses]
    n_blocks = 1 + max((block for _, _, path in uses for block in path), default=-1)
    return measure_reuse(arrays, n_blocks, block_size=block_size, prompt_tokens=tokens, lifetimes_s=lifetimes)


@st.composite
def tree_uses(draw, n_blocks=12, n_uses=14, caches="ab"):
    """Requests for paths in a tree of blocks; shuffled numbers, so that nothing depends on their order."""
    numbers = draw(st.permutations(range(n_blocks)))
    paths = [[]]
    for block in range(draw(st.integers(1, n_blocks))):
        paths.append([*draw(st.sampled_from(paths)), numbers[block]])
    times = sorted(draw(st.lists(st.integers(0, 30), max_size=n_uses)))
    return [(draw(st.sampled_from(caches)), time, draw(st.sampled_from(paths))) for time in times]


@settings(max_examples=300)
@given(tree_uses())
def test_every_lifetime_is_that_of_the_obvious_cache(uses):
    lifetimes = [*LIFETIMES, math.inf]
    slow = [sum(oracle.hit_blocks(uses, lifetime)) for lifetime in lifetimes]
    assert lifetime_hits(measured(uses), lifetimes).tolist() == slow


@settings(max_examples=300)
@given(tree_uses())
def test_every_capacity_is_that_of_a_list_most_recent_first(uses):
    slow = [oracle_reuse.lru_hit_blocks(uses, capacity) for capacity in CAPACITIES]
    assert lru_hits(measured(uses), CAPACITIES).tolist() == slow


@settings(max_examples=150, deadline=None)
@given(tree_uses(n_blocks=6, n_uses=8, caches="aab"))
def test_belady_is_the_best_of_all_choices(uses):
    capacities = [0, 1, 2, 3, 4]
    slow = [oracle_reuse.best_hit_blocks(uses, capacity) for capacity in capacities]
    assert belady_hits(measured(uses), capacities).tolist() == slow


@settings(max_examples=200)
@given(tree_uses())
def test_belady_lies_between_lru_and_an_unbounded_cache(uses):
    reuse = measured(uses)
    belady = belady_hits(reuse, CAPACITIES)
    assert (belady >= lru_hits(reuse, CAPACITIES)).all()
    assert (belady <= lifetime_hits(reuse, [math.inf])).all()
    assert (np.diff(belady) >= 0).all()


@settings(max_examples=200)
@given(tree_uses())
def test_smallest_capacities_are_the_first_that_lose_nothing(uses):
    reuse = measured(uses)
    unbounded = lifetime_hits(reuse, [math.inf])[0]
    first_lossless = [
        next(c for c in CAPACITIES if hits(reuse, [c])[0] == unbounded) for hits in (lru_hits, belady_hits)
    ]
    no_eviction = next(c for c in CAPACITIES if not oracle_reuse.lru_evictions(uses, c))
    assert smallest_capacities([reuse]) == (no_eviction, *first_lossless)


@settings(max_examples=200)
@given(tree_uses())
def test_prefills_are_counted_block_by_block(uses):
    frame = block_prefills([measured(uses)])
    for lifetime in LIFETIMES:
        found = frame.filter(pl.col("lifetime_s") == lifetime).select("n_prefills", "n_blocks").rows()
        assert dict(found) == oracle_reuse.prefills(uses, lifetime)
    assert frame.schema == BLOCK_PREFILLS


@settings(max_examples=200)
@given(tree_uses(), st.sampled_from([*LIFETIMES, math.inf]))
def test_working_sets_are_those_of_the_last_uses(uses, window):
    reuse = measured(uses)
    moments = [0, 0.5, 3, 7, 11.5, 29, 30, 35]
    slow = [oracle_reuse.working_set(uses, moment, window) for moment in moments]
    assert working_set_blocks(reuse, np.array(moments, dtype=np.float64), window).tolist() == slow
    assert resident_block_seconds(reuse, window) == oracle_reuse.resident_block_seconds(uses, window)


@settings(max_examples=100)
@given(tree_uses(), tree_uses())
def test_groups_add_up_as_caches_of_their_own(left, right):
    """Two groups are the same as one whose requests use other caches, but for time averages."""
    together = sorted(
        [(("left", cache), time, path) for cache, time, path in left]
        + [(("right", cache), time, path) for cache, time, path in right],
        key=lambda use: use[1],
    )
    apart, joined = [measured(left), measured(right)], [measured(together)]
    columns = ["hit_tokens", "prompt_tokens", "hit_rate", "prefill_blocks"]
    assert ttl_curve(apart).select(columns).equals(ttl_curve(joined).select(columns))
    assert capacity_curve(apart).equals(capacity_curve(joined))
    assert block_prefills(apart).equals(block_prefills(joined))
    assert smallest_capacities(apart) == smallest_capacities(joined)


BRANCHING = [("a", 0, [0, 1, 2]), ("a", 10, [0, 1, 3]), ("a", 400, [0, 1, 2]), ("a", 410, [0, 1, 2, 4])]


def test_runs_of_a_branching_prompt():
    reuse = measured(BRANCHING)
    runs = list(zip(reuse.run_user, reuse.run_previous, reuse.run_blocks, reuse.run_distance_blocks, strict=True))
    assert runs == [(1, 0, 2, 0), (2, 1, 2, 0), (2, 0, 1, 3), (3, 2, 3, 0)]
    assert reuse.last_uses().tolist() == [0, 1, 0, 4]
    assert (reuse.n_references, reuse.n_distinct, reuse.span_s) == (13, 5, 410.0)


def test_the_leaf_end_is_evicted_first():
    uses = [("a", 0, [0, 1, 2]), ("a", 1, [0, 1, 2])]
    assert lru_hits(measured(uses), [1, 2, 3]).tolist() == [1, 2, 3]


def test_a_request_larger_than_the_cache_leaves_its_first_blocks():
    uses = [("a", 0, [5]), ("a", 1, [0, 1, 2, 3]), ("a", 2, [5]), ("a", 3, [0, 1])]
    assert lru_hits(measured(uses[:3]), [2]).tolist() == [0]
    assert lru_hits(measured(uses), [2]).tolist() == [1]


def test_ttl_curve_names_and_units():
    frame = ttl_curve([measured(BRANCHING, block_size=2, prompt_tokens=40)])
    assert frame.schema == TTL_CURVE
    assert frame["lifetime"].to_list() == list(LIFETIME_TABLE_S)
    assert frame.filter(pl.col("lifetime") == "5m").row(0, named=True) == {
        "lifetime_s": 300.0, "lifetime": "5m", "hit_tokens": 10, "prompt_tokens": 40, "hit_rate": 0.25,
        "prefill_blocks": 8, "mean_resident_blocks": (2 * 10 + 300 + 3 * 300 + 3 * 10) / 410,
    }  # fmt: skip


def test_capacity_curve_names_and_units():
    frame = capacity_curve([measured(BRANCHING, block_size=2, prompt_tokens=40)], 1e6, [3, 5])
    assert frame.schema == CAPACITY_CURVE
    assert frame.rows() == [(3, 6, 0.006, 14, 0.35, 16, 0.40), (5, 10, 0.010, 16, 0.40, 16, 0.40)]


def test_working_set_is_sampled_at_requests_or_evenly():
    reuse = measured(BRANCHING)
    assert working_set(reuse, [300]).rows() == [(0.0, 300, 3), (10.0, 300, 4), (400.0, 300, 3), (410.0, 300, 4)]
    assert working_set(reuse, [60], max_points=3)["t_s"].to_list() == [0.0, 205.0, 410.0]
    assert working_set(reuse).schema == WORKING_SET


@given(tree_uses(), st.sampled_from([1, 3, 7, 20]))
def test_working_set_summary_is_mean_and_maximum(uses, window):
    seconds = range(31)
    sizes = [oracle_reuse.working_set(uses, second, window) for second in seconds]
    span = uses[-1][1] - uses[0][1] if uses else 0
    mean = oracle_reuse.resident_block_seconds(uses, window) / span if span else None
    frame = working_set_summary([measured(uses)], [window])
    assert frame.rows() == [(window, mean, max(sizes))]
    assert frame.schema == WORKING_SET_SUMMARY


def test_all_frames_at_once():
    one, two = [measured(BRANCHING)], [measured(BRANCHING), measured(BRANCHING)]
    assert reuse_frames(one, 1e6).working_set.equals(working_set(one[0]))
    assert reuse_frames(one, 1e6).capacity_curve.equals(capacity_curve(one, 1e6))
    assert reuse_frames(two).working_set.is_empty()
    assert reuse_frames(two).ttl_curve.equals(ttl_curve(two))


def test_nothing_gives_empty_frames_and_zero_rates():
    nothing = measured([])
    for reuses in ([], [nothing]):
        assert ttl_curve(reuses)["hit_rate"].to_list() == [0.0] * len(LIFETIME_TABLE_S)
        assert ttl_curve(reuses)["mean_resident_blocks"].to_list() == [None] * len(LIFETIME_TABLE_S)
        assert capacity_curve(reuses)["lru_hit_rate"].to_list() == [0.0]
        assert block_prefills(reuses).is_empty()
        assert smallest_capacities(reuses) == (0, 0, 0)
    assert working_set(nothing).is_empty()


def test_groups_of_other_block_sizes_are_refused():
    with pytest.raises(ValueError, match="64, 128"):
        ttl_curve([measured(BRANCHING), measured(BRANCHING, block_size=128)])


def test_capacities_reach_the_first_without_evictions():
    assert power_of_two_capacities(0) == [16]
    assert power_of_two_capacities(64) == [16, 32, 64]
    assert power_of_two_capacities(65) == [16, 32, 64, 128]
