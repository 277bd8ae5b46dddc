"""What each request of a conversation waited for, as far as its times and agents tell.

Requests of an agent that overlap can't be one sequence, so an agent has *lanes*: in a lane one request follows the
other. Every dependency names an earlier request, so the graph has no circle, and the recorded times fulfil it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np

from kv_pipeline.core.paths import BlockIds, shared_prefix_blocks

EPSILON_S: Final = 1e-6
"""Times are rounded to microseconds."""


class Trigger(StrEnum):
    """What of the earlier request is waited for."""

    DISPATCH = "dispatch"
    COMPLETION = "completion"


class Relation(StrEnum):
    """Why is waited."""

    SEQUENCE = "sequence"
    """The request before it in the lane."""
    SPAWN = "spawn"
    """The request that the lane came from."""
    JOIN = "join"
    """A sub-agent whose result the parent waited for."""
    REPLAY_BARRIER = "replay_barrier"
    """It was over before in the recording; nothing says that the request needed it."""


class GraphRequest(NamedTuple):
    """A request: whose it is, when it was under way, and its blocks."""

    agent_id: str
    start_s: float
    end_s: float
    path: BlockIds


class Dependency(NamedTuple):
    """A request that is waited for, by its number, and for how long after that."""

    request: int
    trigger: Trigger
    delay_s: float
    relation: Relation


class ReplayNode(NamedTuple):
    """The lane of a request, as (agent, number from 0), and what it waits for."""

    agent_id: str
    lane: int
    dependencies: list[Dependency]


@dataclass(slots=True)
class _Agent:
    lanes: list[list[int]] = field(default_factory=list)
    latest: int | None = None
    """Its request that was sent last so far."""


class _Graph:
    def __init__(
        self, requests: Sequence[GraphRequest], parents: Mapping[str, str | None], awaited: Mapping[str, bool]
    ) -> None:
        self._requests, self._parents, self._awaited = requests, parents, awaited
        self._agents: defaultdict[str, _Agent] = defaultdict(_Agent)
        self._unjoined: defaultdict[str, list[str]] = defaultdict(list)
        self._end_s: dict[str, float] = {}
        for request in requests:
            self._end_s[request.agent_id] = max(self._end_s.get(request.agent_id, request.end_s), request.end_s)

    def add(self, number: int) -> ReplayNode:
        request = self._requests[number]
        agent = self._agents[request.agent_id]
        lane = self._lane(agent, request)
        if lane is None:
            first, covered_s = self._spawn(number, agent)
            agent.lanes.append([])
            lane = len(agent.lanes) - 1
        else:
            previous = agent.lanes[lane][-1]
            first = [self._after(previous, request, Trigger.COMPLETION, Relation.SEQUENCE)]
            covered_s = self._requests[previous].start_s
        found = [*first, *self._joins(request), *self._barriers(agent, lane, request, covered_s)]
        agent.lanes[lane].append(number)
        agent.latest = number
        return ReplayNode(request.agent_id, lane, _distinct(found))

    def _lane(self, agent: _Agent, request: GraphRequest) -> int | None:
        """The lane that has ended and whose prompt goes on the furthest; at a draw the one that ended last."""
        ended = [n for n, lane in enumerate(agent.lanes) if self._is_over(self._requests[lane[-1]], request)]
        if len(ended) < 2:
            return ended[0] if ended else None
        lasts = {n: self._requests[agent.lanes[n][-1]] for n in ended}
        return max(ended, key=lambda n: (_shared_blocks(lasts[n], request), lasts[n].end_s, -n))

    def _spawn(self, number: int, agent: _Agent) -> tuple[list[Dependency], float]:
        """What a lane's first request comes from, and until when the agent's barriers are covered by that."""
        if number == 0:
            return [], float("-inf")
        request = self._requests[number]
        own = agent.latest
        if own is None:
            self._unjoined[self._parents.get(request.agent_id) or ""].append(request.agent_id)
        source = own if own is not None else self._ancestor_request(request.agent_id)
        covered_s = float("-inf") if own is None else self._requests[own].start_s
        if source is None:
            return [self._after(0, request, Trigger.DISPATCH, Relation.SPAWN)], covered_s
        is_over = self._is_over(self._requests[source], request)
        trigger = Trigger.COMPLETION if is_over else Trigger.DISPATCH
        return [self._after(source, request, trigger, Relation.SPAWN)], covered_s

    def _ancestor_request(self, agent_id: str) -> int | None:
        """The latest request of the nearest ancestor that has one so far."""
        seen = {agent_id}
        parent = self._parents.get(agent_id)
        while parent is not None and parent not in seen:
            seen.add(parent)
            if parent in self._agents and self._agents[parent].latest is not None:
                return self._agents[parent].latest
            parent = self._parents.get(parent)
        return None

    def _joins(self, request: GraphRequest) -> list[Dependency]:
        """Sub-agents that were over when their parent went on for the first time since."""
        waiting = self._unjoined[request.agent_id]
        over = [name for name in waiting if self._end_s[name] <= request.start_s + EPSILON_S]
        self._unjoined[request.agent_id] = [name for name in waiting if name not in over]
        return [
            Dependency(
                lane[-1],
                Trigger.COMPLETION,
                0.0,
                Relation.JOIN if self._awaited.get(name) else Relation.REPLAY_BARRIER,
            )
            for name in over
            for lane in self._agents[name].lanes
        ]

    def _barriers(self, agent: _Agent, own: int, request: GraphRequest, covered_s: float) -> list[Dependency]:
        """The agent's other lanes as far as they were over, unless what is waited for anyway was sent after that."""
        found = []
        for number, lane in enumerate(agent.lanes):
            over = [n for n in lane if self._is_over(self._requests[n], request)] if number != own else []
            if over and self._requests[over[-1]].end_s > covered_s:
                found.append(Dependency(over[-1], Trigger.COMPLETION, 0.0, Relation.REPLAY_BARRIER))
        return found

    def _after(self, number: int, request: GraphRequest, trigger: Trigger, relation: Relation) -> Dependency:
        earlier = self._requests[number]
        moment_s = earlier.end_s if trigger is Trigger.COMPLETION else earlier.start_s
        return Dependency(number, trigger, max(0.0, request.start_s - moment_s), relation)

    @staticmethod
    def _is_over(earlier: GraphRequest, request: GraphRequest) -> bool:
        return earlier.end_s <= request.start_s + EPSILON_S


def _shared_blocks(earlier: GraphRequest, request: GraphRequest) -> int:
    return shared_prefix_blocks(earlier.path.view(np.int64), request.path.view(np.int64))


def _distinct(dependencies: Sequence[Dependency]) -> list[Dependency]:
    """One per earlier request: the first, which says the most."""
    return list({d.request: d for d in reversed(dependencies)}.values())[::-1]


def replay_graph(
    requests: Sequence[GraphRequest], parents: Mapping[str, str | None], awaited: Mapping[str, bool]
) -> list[ReplayNode]:
    """What each request waits for.

    Source: the relations are those of Dynamo's agentic Mooncake v2; overlapping requests of an agent, sub-agents and
    agents that nobody started are handled as its importer of Weka traces does, except that agents are taken from the
    record instead of being found anew.

    Args:
        requests: In order of time; the first one is the root of the graph.
        parents: Agent to the agent that started it; none for those that nobody started.
        awaited: Agent to whether its parent waited for its result.
    """
    graph = _Graph(requests, parents, awaited)
    return [graph.add(number) for number in range(len(requests))]
