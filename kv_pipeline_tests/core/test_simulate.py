from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.simulate import LIFETIMES_S, Use, prefix_hit_blocks
from kv_pipeline_tests import oracle


@st.composite
def tree_paths(draw):
    """Paths in a tree of blocks: equal numbers mean equal prefixes, as in a conversation."""
    parents = draw(st.lists(st.integers(-1, 8), min_size=1, max_size=10))
    paths = []
    for block, parent in enumerate(parents):
        paths.append([*(paths[parent] if 0 <= parent < block else []), block])
    return paths


@st.composite
def uses(draw):
    paths = [*draw(tree_paths()), []]
    times = sorted(draw(st.lists(st.integers(0, 30), max_size=15)))
    return [(draw(st.sampled_from("ab")), float(time), draw(st.sampled_from(paths))) for time in times]


@settings(max_examples=300)
@given(uses(), st.lists(st.sampled_from([0.0, 1.0, 5.0, 12.5, math.inf]), min_size=1, max_size=3))
def test_hits_are_those_of_the_obvious_cache(uses, lifetimes):
    fast = prefix_hit_blocks((Use(c, t, np.array(p, dtype=np.int64)) for c, t, p in uses), 10, lifetimes)
    slow = [oracle.hit_blocks(uses, lifetime) for lifetime in lifetimes]
    assert fast.T.tolist() == slow
    assert fast.shape == (len(uses), len(lifetimes))


def hits(*uses, lifetime=300.0):
    return prefix_hit_blocks([Use(c, t, np.array(p, dtype=np.int64)) for c, t, p in uses], 9, [lifetime])[:, 0].tolist()


def test_a_gap_of_exactly_the_lifetime_still_hits():
    assert hits(("a", 0, [0, 1]), ("a", 300, [0, 1])) == [0, 2]
    assert hits(("a", 0, [0, 1]), ("a", 300.000001, [0, 1])) == [0, 0]


def test_a_use_renews_the_prefix_only():
    assert hits(("a", 0, [0, 1, 2]), ("a", 200, [0]), ("a", 400, [0, 1, 2])) == [0, 1, 1]


def test_caches_share_nothing():
    assert hits(("a", 0, [0]), ("b", 1, [0]), ("a", 2, [0])) == [0, 0, 1]


def test_lifetimes_are_the_documented_ones():
    assert {"infinite": math.inf, "5m": 300.0, "1h": 3600.0} == LIFETIMES_S
