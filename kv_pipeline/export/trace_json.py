"""One conversation as trace JSON, the format of kv-cache-tester. docs/trace-format.md describes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from kv_pipeline.export.options import ExportOptions, Profile
from kv_pipeline.export.pieces import MAIN_AGENT, Json

_TIME_DIGITS: Final = 6
_STATUSES: Final = ("completed", "async_launched")


@dataclass(slots=True)
class TraceRequest:
    """One request: a row of TRACES with its sections and block numbers.

    Attributes:
        row: Columns of TRACES, `tools_tokens` and `system_tokens` by name.
        hash_ids: Its full blocks as published numbers.
    """

    row: Json
    hash_ids: list[int]

    @property
    def t_s(self) -> float:
        """Seconds since the conversation's first request."""
        return float(self.row["t_s"])

    @property
    def end_s(self) -> float:
        """When the answer was complete, on the same clock."""
        return self.t_s + (self.row["api_time_s"] or 0.0)


@dataclass(slots=True)
class TraceAgent:
    """An agent with its requests in order, and the agents it started."""

    facts: Json
    requests: list[TraceRequest] = field(default_factory=list)
    children: list[TraceAgent] = field(default_factory=list)

    @property
    def start_s(self) -> float:
        """Time of its first request, or of its first sub-agent's."""
        return min([r.t_s for r in self.requests[:1]] + [child.start_s for child in self.children])


def agent_tree(requests: Sequence[TraceRequest], agents: Iterable[Json]) -> TraceAgent | None:
    """The conversation's agents that have requests, below its main thread.

    Agents whose parent has no requests move up to the next ancestor that has. A conversation whose main thread has
    none gets the agent that spoke first as its main thread. None without any request.
    """
    nodes = {str(facts["agent_id"]): TraceAgent(facts) for facts in agents}
    for request in requests:
        nodes[request.row["agent_id"]].requests.append(request)
    live = {agent_id: node for agent_id, node in nodes.items() if node.requests}
    if not live:
        return None
    root = live.get(MAIN_AGENT) or live[requests[0].row["agent_id"]]
    for node in live.values():
        if node is not root:
            _live_parent(node, nodes, root).children.append(node)
    return root


def _live_parent(node: TraceAgent, nodes: dict[str, TraceAgent], root: TraceAgent) -> TraceAgent:
    """The nearest ancestor with requests; the root if there is none, or if the ancestors form a circle."""
    seen = {id(node)}
    nearest = None
    parent = nodes.get(node.facts["parent_agent_id"] or MAIN_AGENT)
    while parent is not None:
        if id(parent) in seen:
            return root
        seen.add(id(parent))
        nearest = nearest or (parent if parent.requests else None)
        parent = nodes.get(parent.facts["parent_agent_id"] or "")
    return nearest or root


def trace_json(
    trace_id: str, root: TraceAgent, block_size: int, options: ExportOptions, analysis: Json | None = None
) -> Json:
    """The trace file's object.

    Args:
        trace_id: Its id.
        root: The main thread with its sub-agents.
        block_size: Tokens a block.
        options: What was asked for.
        analysis: Goes into `_analysis` in the upstream profile, nowhere in the strict one.
    """
    builder = _Builder(options)
    entries = builder.entries(root, root.start_s)
    descendants = _descendants(root)
    first = root.requests[0].row
    trace: Json = {
        "id": trace_id,
        "models": _models(root.requests + [r for a in descendants for r in a.requests])
        if options.profile is Profile.STRICT
        else _models(root.requests),
        "block_size": block_size,
        "hash_id_scope": options.scope.value,
        "tool_tokens": first["tools_tokens"],
        "system_tokens": first["system_tokens"],
        "requests": entries,
        "totals": _totals(root.requests, descendants),
    }
    if analysis is not None and options.profile is Profile.UPSTREAM:
        trace["_analysis"] = analysis
    return trace


class _Builder:
    """Turns agents into entries; sub-agents are renamed in order of appearance if names must go."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._is_strict = options.profile is Profile.STRICT
        self._n_agents = 0

    def entries(self, agent: TraceAgent, base_s: float) -> list[Json]:
        """Requests and sub-agents of an agent by time; at one time a request comes before what it started."""
        # Strict readers want a request before the first sub-agent: one that started earlier is told right after it.
        earliest = agent.requests[0].t_s if self._is_strict and agent.requests else float("-inf")
        timed: list[tuple[float, int, Callable[[], Json]]] = [
            (request.t_s, 0, partial(self._request, request, base_s)) for request in agent.requests
        ]
        timed += [
            (max(below.start_s, earliest), 1, partial(self._subagent, below, base_s, earliest))
            for below in self._below(agent)
        ]
        return [make() for _, _, make in sorted(timed, key=lambda item: item[:2])]

    def _below(self, agent: TraceAgent) -> list[TraceAgent]:
        """The sub-agents to tell inside an agent: in the strict profile, where they can't nest, all below it."""
        if not self._options.with_subagents:
            return []
        return _descendants(agent) if self._is_strict else agent.children

    def _request(self, request: TraceRequest, base_s: float) -> Json:
        row = request.row
        entry: Json = {
            "t": _rounded(request.t_s - base_s),
            "type": row["type"],
            "model": row["model"],
            "in": row["input_tokens"],
            "out": row["output_tokens"],
            "hash_ids": request.hash_ids,
            "input_types": row["input_types"],
            "output_types": row["output_types"],
            "stop": row["stop_reason"],
        }
        for key, column in (("api_time", "api_time_s"), ("ttft", "ttft_s")):
            if row[column] is not None:
                entry[key] = _rounded(row[column])
        entry["think_time"] = _rounded(row["think_time_s"])
        if self._options.absolute_timestamps:
            entry["timestamp"] = _iso(row["requested_at_utc"])
        return entry

    def _subagent(self, agent: TraceAgent, base_s: float, earliest_s: float) -> Json:
        self._n_agents += 1
        facts, own = agent.facts, agent.requests
        agent_id = f"agent_{self._n_agents:03d}" if self._options.anonymize else facts["agent_id"]
        entries = (
            [self._request(request, agent.start_s) for request in own]
            if self._is_strict
            else self.entries(agent, agent.start_s)
        )
        return {
            "t": _rounded(max(agent.start_s, earliest_s) - base_s),
            "type": "subagent",
            "agent_id": agent_id,
            "subagent_type": facts["subagent_type"] or "unlinked",
            "duration_ms": facts["duration_ms"] or _duration_ms(own),
            "total_tokens": facts["total_tokens"] or own[-1].row["input_tokens"] + own[-1].row["output_tokens"],
            "tool_use_count": facts["tool_use_count"] or sum("tool_use" in r.row["output_types"] for r in own),
            "status": facts["status"] if facts["status"] in _STATUSES else "completed",
            "requests": entries,
            "models": _models(own),
            "tool_tokens": own[0].row["tools_tokens"],
            "system_tokens": own[0].row["system_tokens"],
        }


def _descendants(agent: TraceAgent) -> list[TraceAgent]:
    return [node for child in agent.children for node in (child, *_descendants(child))]


def _duration_ms(requests: Sequence[TraceRequest]) -> int:
    return round((max(r.end_s for r in requests) - requests[0].t_s) * 1000)


def _models(requests: Iterable[TraceRequest]) -> list[str]:
    """Distinct models in order of first use."""
    return list(dict.fromkeys(request.row["model"] for request in requests))


def _totals(main: Sequence[TraceRequest], subagents: Sequence[TraceAgent]) -> Json:
    parent = _tokens(main)
    below = _tokens([request for agent in subagents for request in agent.requests])
    combined = {key: parent[key] + below[key] for key in parent}
    return {
        "parent_tokens": parent,
        "subagent_tokens": below,
        "combined_tokens": combined,
        "subagent_count": len(subagents),
    }


def _tokens(requests: Iterable[TraceRequest]) -> dict[str, int]:
    rows = [request.row for request in requests]
    return {"input": sum(r["input_tokens"] for r in rows), "output": sum(r["output_tokens"] for r in rows)}


def _rounded(seconds: float) -> float:
    return round(float(seconds), _TIME_DIGITS)


def _iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
