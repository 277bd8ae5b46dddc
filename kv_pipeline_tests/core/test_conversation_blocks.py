from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.conversation_blocks import ConversationBlocks, conversation_reuse, fleet_reuse
from kv_pipeline.core.paths import prefix_references
from kv_pipeline.core.reuse_curves import lifetime_hits, lru_hits
from kv_pipeline_tests import oracle, oracle_reuse

LIFETIMES = [1.0, 7.0, math.inf]
CAPACITIES = [1, 2, 3, 5, 8]


def conversation(name, uses, *, has_own_ids=False, starts_at_s=0.0):
    """Uses are (model, time, path) in order of time."""
    paths = [np.array(path, dtype=np.uint64) for _, _, path in uses]
    references = prefix_references(paths)
    return ConversationBlocks(
        conversation_id=name,
        block_size=64,
        starts_at_s=starts_at_s,
        times_s=np.array([time for _, time, _ in uses], dtype=np.float64),
        models=[model for model, _, _ in uses],
        agent_ids=["main"] * len(uses),
        prompt_tokens=np.array([64 * len(path) for path in paths], dtype=np.int64),
        prefix_requests=references.prefix_requests,
        shared_blocks=references.shared_blocks,
        agent_shared_blocks=references.shared_blocks,
        n_new_blocks=references.n_new_blocks,
        new_blocks=references.new_blocks,
        has_own_ids=has_own_ids,
    )


@st.composite
def fleets(draw, n_conversations=3):
    """Conversations of (model, time, path) in one tree of blocks."""
    paths = [[]]
    for block in range(1, draw(st.integers(2, 9))):
        paths.append([*draw(st.sampled_from(paths)), block * 10**12])
    return [
        [
            (draw(st.sampled_from("mn")), time, draw(st.sampled_from(paths)))
            for time in sorted(draw(st.lists(st.integers(0, 20), max_size=6)))
        ]
        for _ in range(n_conversations)
    ]


def assert_same(reuse, uses):
    assert lifetime_hits(reuse, LIFETIMES).tolist() == [sum(oracle.hit_blocks(uses, limit)) for limit in LIFETIMES]
    assert lru_hits(reuse, CAPACITIES).tolist() == [oracle_reuse.lru_hit_blocks(uses, size) for size in CAPACITIES]
    assert reuse.prompt_tokens == 64 * sum(len(path) for _, _, path in uses) == 64 * reuse.n_references


@given(fleets(1))
def test_a_conversation_alone_has_a_cache_a_model(fleet):
    assert_same(conversation_reuse(conversation("c", fleet[0])), fleet[0])


@given(fleets(), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_a_fleet_shares_blocks_and_is_interleaved_by_the_clock(fleet, starts):
    reuse = fleet_reuse(
        [
            conversation(str(n), uses, starts_at_s=start)
            for n, (uses, start) in enumerate(zip(fleet, starts, strict=True))
        ]
    )
    together = [
        (model, time + start, path) for uses, start in zip(fleet, starts, strict=True) for model, time, path in uses
    ]
    assert_same(reuse, sorted(together, key=lambda use: use[1]))


@given(fleets(), st.lists(st.booleans(), min_size=3, max_size=3))
def test_own_ids_are_shared_with_nobody(fleet, has_own):
    conversations = [
        conversation(str(n), uses, has_own_ids=own, starts_at_s=None)
        for n, (uses, own) in enumerate(zip(fleet, has_own, strict=True))
    ]
    together = [
        (model, time, [block + n + 1 if own else block for block in path])
        for n, (uses, own) in enumerate(zip(fleet, has_own, strict=True))
        for model, time, path in uses
    ]
    assert_same(fleet_reuse(conversations), sorted(together, key=lambda use: use[1]))


def test_without_a_common_clock_all_begin_at_once():
    early = conversation("a", [("m", 0, [1]), ("m", 100, [1])], starts_at_s=1e9)
    unknown = conversation("b", [("m", 50, [2])], starts_at_s=None)
    assert fleet_reuse([early, unknown]).times_s.tolist() == [0, 50, 100]


def test_no_conversation_is_an_empty_fleet():
    assert fleet_reuse([]).n_references == 0
