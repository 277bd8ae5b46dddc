"""Trace files with everything that requests and sub-agents say, for writing them anew in another format."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.core.paths import BlockIds
from kv_pipeline.errors import InputError
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline.sources.trace_json.reader import (
    MAIN_AGENT,
    bad_trace,
    counts_from_marker,
    decoded,
    full_blocks,
    start_s,
)
from kv_pipeline.sources.trace_json.wire import (
    WHOLE_DECODER,
    WholePlainRequest,
    WholeRequest,
    WholeSubagent,
    WholeTraceFile,
)

_TEXTS: Final = pl.List(pl.String())
ROW_SCHEMA: Final[dict[str, pl.DataType]] = {
    "agent_id": pl.String(), "t_s": pl.Float64(), "type": pl.String(), "model": pl.String(),
    "input_tokens": pl.UInt32(), "output_tokens": pl.Int64(), "input_types": _TEXTS, "output_types": _TEXTS,
    "stop_reason": pl.String(), "api_time_s": pl.Float64(), "ttft_s": pl.Float64(), "think_time_s": pl.Float64(),
    "tools_tokens": pl.UInt32(), "system_tokens": pl.UInt32(),
}  # fmt: skip
_MAX_TOKENS: Final = 2**32 - 1
_Entries = Sequence[WholeRequest | WholePlainRequest | WholeSubagent]


class WholeTrace(NamedTuple):
    """One trace file, its requests in order of time.

    Attributes:
        trace_id: Its id; the file's name without `.json` if it has none.
        block_size: Tokens a block.
        has_own_ids: Whether ids mean nothing in another file.
        starts_at_s: Unix time of t = 0; None if no request carries a time of day.
        rows: Per request the values of ROW_SCHEMA.
        paths: Per request the ids of its full blocks.
        agents: The main thread and all sub-agents, with the columns of AGENTS that a trace tells.
        n_surplus_ids: Ids left out because they stand for no full block of their prompt.
    """

    trace_id: str
    block_size: int
    has_own_ids: bool
    starts_at_s: float | None
    rows: list[tuple[Any, ...]]
    paths: list[BlockIds]
    agents: list[dict[str, Any]]
    n_surplus_ids: int


class _Agent(NamedTuple):
    agent_id: str
    tools_tokens: int
    system_tokens: int


class _Placed(NamedTuple):
    t_s: float
    agent: _Agent
    request: WholeRequest | WholePlainRequest


class _Walk:
    """Goes through a file's entries, naming agents. An id that comes again is that of another agent."""

    def __init__(self, *, is_relative: bool) -> None:
        self._is_relative = is_relative
        self._taken = {MAIN_AGENT}
        self.agents = [_facts(MAIN_AGENT, None, None)]

    def requests(self, entries: _Entries, agent: _Agent, offset_s: float) -> Iterator[_Placed]:
        for number, entry in enumerate(entries):
            if isinstance(entry, WholeSubagent):
                below = self._agent(entry, agent, number)
                base_s = offset_s + entry.t if self._is_relative else 0.0
                yield from self.requests(entry.requests, below, base_s)
            else:
                yield _Placed(offset_s + entry.t, agent, entry)

    def _agent(self, entry: WholeSubagent, parent: _Agent, number: int) -> _Agent:
        wanted = entry.agent_id or f"{parent.agent_id}/{number}"
        names = (wanted if n == 1 else f"{wanted}~{n}" for n in itertools.count(1))
        name = next(name for name in names if name not in self._taken)
        self._taken.add(name)
        self.agents.append(_facts(name, parent.agent_id, entry))
        return _Agent(name, entry.tool_tokens or 0, entry.system_tokens or 0)


def _facts(agent_id: str, parent_agent_id: str | None, entry: WholeSubagent | None) -> dict[str, Any]:
    return {
        "agent_id": agent_id,
        "parent_agent_id": parent_agent_id,
        "subagent_type": entry.subagent_type if entry else None,
        "duration_ms": round(entry.duration_ms) if entry and entry.duration_ms is not None else None,
        "total_tokens": entry.total_tokens if entry else None,
        "tool_use_count": entry.tool_use_count if entry else None,
        "status": entry.status if entry else None,
    }


def read_whole(path: Path, nested_times: NestedTimes = NestedTimes.AUTO) -> WholeTrace:
    """Read one trace file.

    Args:
        path: The file.
        nested_times: What `t` inside a sub-agent counts from; the file is asked if that is not said.

    Raises:
        InputError: It can't be read, or is no trace.
    """
    file = decoded(path, WHOLE_DECODER)
    walk = _Walk(is_relative=counts_from_marker(file.requests, nested_times))
    main = _Agent(MAIN_AGENT, file.tool_tokens or 0, file.system_tokens or 0)
    placed = sorted(walk.requests(file.requests, main, 0.0), key=lambda found: found.t_s)
    _check(path, file, placed)
    paths, n_surplus_ids = full_blocks(path, [found.request for found in placed], file.block_size)
    return WholeTrace(
        trace_id=file.id or path.stem,
        block_size=file.block_size,
        has_own_ids=file.hash_id_scope == "local",
        starts_at_s=start_s((found.t_s, found.request) for found in placed),
        rows=[_row(found) for found in placed],
        paths=paths,
        agents=walk.agents,
        n_surplus_ids=n_surplus_ids,
    )


def _check(path: Path, file: WholeTraceFile, placed: Sequence[_Placed]) -> None:
    if file.block_size > _MAX_TOKENS or not all(map(_is_sound, placed)):
        raise _unsound(path)


def _is_sound(found: _Placed) -> bool:
    request, agent = found.request, found.agent
    times_s = (request.api_time, request.ttft, request.think_time)
    tokens = (request.in_, request.out, agent.tools_tokens, agent.system_tokens)
    return (
        found.t_s >= 0
        and all(time_s is None or 0 <= time_s < float("inf") for time_s in times_s)
        and all(0 <= n_tokens <= _MAX_TOKENS for n_tokens in tokens)
    )


def _unsound(path: Path) -> InputError:
    return bad_trace(path, "no_trace", "a time or token count is negative, or above 32 bits")


def _row(found: _Placed) -> tuple[Any, ...]:
    request = found.request
    kind = "n" if isinstance(request, WholePlainRequest) else "s"
    return (
        found.agent.agent_id, found.t_s, kind, request.model, request.in_, request.out, request.input_types,
        request.output_types, request.stop or "", request.api_time, request.ttft, request.think_time,
        found.agent.tools_tokens, found.agent.system_tokens,
    )  # fmt: skip
