"""A trace that every reader takes, as JSON, and ways to spoil it."""

from __future__ import annotations

import copy
import json
from typing import Any


def request(t: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "t": t, "type": "s", "model": "m", "in": 133, "out": 7, "hash_ids": [1, 2], "input_types": ["text"],
        "output_types": ["text"], "stop": "end_turn", "api_time": 1.5, "ttft": 0.5, "think_time": 0.0,
    } | more  # fmt: skip


def subagent(*requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "t": 5.0, "type": "subagent", "agent_id": "agent_001", "subagent_type": "Explore", "duration_ms": 3000,
        "total_tokens": 140, "tool_use_count": 0, "status": "completed", "requests": list(requests), "models": ["m"],
        "tool_tokens": 5, "system_tokens": 6,
    } | more  # fmt: skip


def trace(*requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    both = {"input": 1, "output": 2}
    totals = {"parent_tokens": both, "subagent_tokens": both, "combined_tokens": both, "subagent_count": 1}
    return {
        "id": "trace_0001", "models": ["m"], "block_size": 64, "hash_id_scope": "local", "tool_tokens": 5,
        "system_tokens": 6, "requests": list(requests) or [request(), subagent(request())], "totals": totals,
    } | more  # fmt: skip


def spoiled(path: list[str | int], value: Any) -> dict[str, Any]:
    """The sound trace with something else at a place; `...` removes what is there."""
    document = copy.deepcopy(trace())
    holder: Any = document
    for step in path[:-1]:
        holder = holder[step]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return document


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


REQUEST: list[str | int] = ["requests", 0]
SUBAGENT: list[str | int] = ["requests", 1]
INNER: list[str | int] = [*SUBAGENT, "requests", 0]
SPOILED: dict[str, tuple[list[str | int], Any]] = {
    "unknown key": (["_analysis"], {}),
    "unknown key of a request": ([*REQUEST, "timestamp"], "2026"),
    "global ids": (["hash_id_scope"], "global"),
    "no scope": (["hash_id_scope"], ...),
    "no id": (["id"], ...),
    "no models": (["models"], ...),
    "block size 0": (["block_size"], 0),
    "block size as text": (["block_size"], "64"),
    "time as text": ([*REQUEST, "t"], "now"),
    "no model": ([*INNER, "model"], ...),
    "another type": ([*REQUEST, "type"], "x"),
    "ttft of a request that was not streamed": ([*REQUEST, "type"], "n"),
    "an id as text": ([*INNER, "hash_ids", 1], "two"),
    "null api_time": ([*REQUEST, "api_time"], None),
    "null duration": ([*SUBAGENT, "duration_ms"], None),
    "null agent type": ([*SUBAGENT, "subagent_type"], None),
    "status of another kind": ([*SUBAGENT, "status"], "failed"),
    "no status": ([*SUBAGENT, "status"], ...),
    "nested sub-agent": (INNER, subagent(request())),
    "requests as an object": (["requests"], {}),
    "output as text": ([*REQUEST, "out"], "7"),
    "totals of another shape": (["totals"], {"a": 1}),
    "no totals": (["totals"], ...),
    "types as text": ([*REQUEST, "input_types"], "text"),
}
