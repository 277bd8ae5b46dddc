from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.replay_graph import Dependency, GraphRequest, Relation, Trigger, replay_graph

PARENTS = {"main": None, "a": "main", "b": "a", "c": None}
AWAITED = {"a": True, "b": False}


def request(agent, start_s, end_s, blocks=()):
    return GraphRequest(agent, start_s, end_s, np.array(blocks, dtype=np.uint64))


def edges(*requests, parents=PARENTS, awaited=AWAITED):
    nodes = replay_graph(requests, parents, awaited)
    return [[(d.request, d.trigger.value, d.delay_s, d.relation.value) for d in node.dependencies] for node in nodes]


def test_a_sequence():
    found = edges(request("main", 0, 2), request("main", 5, 6), request("main", 6, 9))
    assert found == [[], [(0, "completion", 3, "sequence")], [(1, "completion", 0, "sequence")]]


def test_a_sub_agent_is_spawned_and_joined():
    found = edges(request("main", 0, 2), request("a", 3, 4), request("a", 5, 6), request("main", 7, 8))
    assert found[1] == [(0, "completion", 1, "spawn")]
    assert found[3] == [(0, "completion", 5, "sequence"), (2, "completion", 0.0, "join")]


def test_a_sub_agent_that_began_before_its_parent_answered():
    assert edges(request("main", 0, 9), request("a", 4, 5))[1] == [(0, "dispatch", 4, "spawn")]


def test_what_was_over_but_not_awaited_is_a_barrier():
    found = edges(
        request("main", 0, 1), request("a", 2, 3), request("b", 4, 5), request("a", 6, 7), request("main", 8, 9)
    )
    assert found[3] == [(1, "completion", 3, "sequence"), (2, "completion", 0.0, "replay_barrier")]
    assert found[4] == [(0, "completion", 7, "sequence"), (3, "completion", 0.0, "join")]


def test_a_sub_agent_that_goes_on_is_not_joined_yet():
    found = edges(
        request("main", 0, 1), request("a", 2, 3), request("main", 4, 5), request("a", 6, 7), request("main", 8, 9)
    )
    assert found[2] == [(0, "completion", 3, "sequence")]
    assert found[4] == [(2, "completion", 3, "sequence"), (3, "completion", 0.0, "join")]


def test_agents_that_nobody_started_hang_on_the_first_request():
    assert edges(request("c", 0, 1), request("main", 4, 5))[1] == [(0, "dispatch", 4, "spawn")]


def test_overlapping_requests_of_an_agent_are_lanes():
    nodes = replay_graph(
        [
            request("main", 0, 1, [1, 2]),
            request("main", 2, 9, [1, 2, 3]),
            request("main", 3, 4, [7]),
            request("main", 10, 11, [1, 2, 3, 4]),
        ],
        PARENTS,
        AWAITED,
    )
    assert [node.lane for node in nodes] == [0, 0, 1, 0]
    assert nodes[2].dependencies == [Dependency(1, Trigger.DISPATCH, 1, Relation.SPAWN)]
    assert nodes[3].dependencies == [
        Dependency(1, Trigger.COMPLETION, 1, Relation.SEQUENCE),
        Dependency(2, Trigger.COMPLETION, 0.0, Relation.REPLAY_BARRIER),
    ]


def test_parents_in_a_circle_end():
    found = edges(request("x", 0, 1), request("y", 2, 3), parents={"x": "y", "y": "x"})
    assert found == [[], [(0, "completion", 1, "spawn")]]


@st.composite
def recorded(draw):
    starts = sorted(draw(st.lists(st.integers(0, 30), min_size=1, max_size=14)))
    return [
        request(
            draw(st.sampled_from(list(PARENTS))), start, start + draw(st.integers(0, 8)), [1, draw(st.integers(2, 3))]
        )
        for start in starts
    ]


@given(recorded())
def test_the_recorded_times_fulfil_all_and_name_one_root(requests):
    nodes = replay_graph(requests, PARENTS, AWAITED)
    for number, (found, node) in enumerate(zip(requests, nodes, strict=True)):
        assert bool(node.dependencies) == (number > 0), "one root, and a way to it from everywhere"
        assert len({d.request for d in node.dependencies}) == len(node.dependencies)
        for d in node.dependencies:
            assert d.request < number
            earlier = requests[d.request]
            moment = earlier.end_s if d.trigger is Trigger.COMPLETION else earlier.start_s
            assert moment + d.delay_s <= found.start_s
            if d.relation in (Relation.SEQUENCE, Relation.SPAWN):
                assert moment + d.delay_s == found.start_s, "replayed as fast as recorded, it starts when it did"


@given(recorded())
def test_lanes_are_sequences(requests):
    lanes = defaultdict(list)
    for number, node in enumerate(replay_graph(requests, PARENTS, AWAITED)):
        lane = lanes[node.agent_id, node.lane]
        sequence = [d.request for d in node.dependencies if d.relation is Relation.SEQUENCE]
        assert sequence == lane[-1:]
        assert node.agent_id == requests[number].agent_id
        lane.append(number)
    for lane in lanes.values():
        assert all(requests[a].end_s <= requests[b].start_s for a, b in itertools.pairwise(lane))


@given(recorded())
def test_an_agent_has_as_many_lanes_as_requests_at_a_time(requests):
    nodes = replay_graph(requests, PARENTS, AWAITED)
    for agent in PARENTS:
        own = [r for r in requests if r.agent_id == agent]
        at_once = [1 + sum(o.end_s > r.start_s for o in own[:number]) for number, r in enumerate(own)]
        assert len({node.lane for node in nodes if node.agent_id == agent}) == max(at_once, default=0)
