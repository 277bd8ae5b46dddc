"""From trace files to conversations of blocks."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np

from kv_pipeline.core.conversation_blocks import ConversationBlocks
from kv_pipeline.core.paths import BlockIds, chained_ids, prefix_references
from kv_pipeline.core.reuse import Ints
from kv_pipeline.errors import InputError, Skip, UsageError
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline.sources.trace_json.wire import DECODER, PlainRequest, Request, Subagent, TraceFile

MAIN_AGENT: Final = "main"
_SCOPES: Final = ("local", "global")
File = TypeVar("File", bound=TraceFile)
_Entries = Sequence[Request | PlainRequest | Subagent]
_REMEDY: Final = "Leave the file out, or write it anew: docs/trace-format.md has the keys."


class Trace(NamedTuple):
    """One trace file.

    Attributes:
        source: The file.
        blocks: Its requests in order of time.
        n_subagents: Sub-agents, nested ones included.
        output_tokens: Tokens of all answers.
        n_surplus_ids: Block ids left out because they stand for no full block of their prompt.
        is_chained: Whether equal ids meant equal prefixes; if not, blocks are known by their whole prefix instead.
    """

    source: Path
    blocks: ConversationBlocks
    n_subagents: int
    output_tokens: int
    n_surplus_ids: int
    is_chained: bool

    def notices(self) -> list[Skip]:
        """What was repaired in it."""
        found = []
        if not self.is_chained:
            found.append(self._notice("unchained_ids", "an id stands behind different blocks", "Publish chained ids."))
        if self.n_surplus_ids:
            what = f"{self.n_surplus_ids} ids of blocks that are not full"
            found.append(self._notice("surplus_ids", what, "None needed: only full blocks can be shared."))
        return found

    def _notice(self, reason: str, found: str, remedy: str) -> Skip:
        return Skip(str(self.source), None, reason, found, remedy, is_left_out=False)


class _Row(NamedTuple):
    """A request on the trace's own clock."""

    t_s: float
    agent_id: str
    request: Request | PlainRequest


def trace_files(paths: Sequence[Path]) -> list[Path]:
    """The trace files that paths name: files themselves, and `*.json` of folders.

    Raises:
        UsageError: A path is neither, or there is no file.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UsageError(f"There is no file or folder {missing[0]}.")
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        below = next((file.parent for path in paths for file in sorted(path.glob("*/*.json"))), None)
        remedy = f"There are in {below}: give that folder." if below else "`kv-pipeline export` writes traces."
        raise UsageError(f"There is no *.json in {', '.join(map(str, paths))}. {remedy}")
    return list(dict.fromkeys(files))


def read_trace(path: Path, nested_times: NestedTimes = NestedTimes.AUTO) -> Trace:
    """Read one trace file.

    Args:
        path: The file.
        nested_times: What `t` inside a sub-agent counts from; the file is asked if that is not said.

    Raises:
        InputError: It can't be read, or is no trace.
    """
    file = decoded(path, DECODER)
    is_relative = counts_from_marker(file.requests, nested_times)
    rows = sorted(_rows(file.requests, MAIN_AGENT, 0.0, is_relative=is_relative), key=lambda row: row.t_s)
    full, n_surplus_ids = full_blocks(path, [row.request for row in rows], file.block_size)
    blocks, is_chained = _blocks(file, path, rows, full)
    return Trace(
        source=path,
        blocks=blocks,
        n_subagents=_n_subagents(file.requests),
        output_tokens=sum(row.request.out for row in rows),
        n_surplus_ids=n_surplus_ids,
        is_chained=is_chained,
    )


def decoded(path: Path, decoder: msgspec.json.Decoder[File]) -> File:
    """A trace file, checked as far as every reader needs.

    Raises:
        InputError: It can't be read, or is no trace.
    """
    try:
        file = decoder.decode(path.read_bytes())
        rows = list(_rows(file.requests, MAIN_AGENT, 0.0, is_relative=False))
    except OSError as error:
        raise InputError("unreadable_file", str(path), error.strerror or "no access", "Check its rights.") from error
    except RecursionError as error:
        raise bad_trace(path, "no_trace", "sub-agents are nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Values of the file are not repeated, only the keys that lead to them.
        raise bad_trace(path, "no_trace", re.sub(r"[Ii]nvalid value '.*'", "invalid value", str(error))) from error
    if file.block_size < 1 or file.hash_id_scope not in _SCOPES:
        raise bad_trace(path, "no_trace", "block_size is below 1, or hash_id_scope is neither local nor global")
    if not all(np.isfinite(row.t_s) and row.request.in_ >= 0 for row in rows):
        raise bad_trace(path, "no_trace", "a time is no number, or a prompt has negative tokens")
    return file


def full_blocks(path: Path, requests: Sequence[Request | PlainRequest], block_size: int) -> tuple[list[BlockIds], int]:
    """Per request the ids of its full blocks, and how many ids of other blocks were left out.

    Raises:
        InputError: An id does not fit into 64 bits.
    """
    try:
        ids = [np.frombuffer(array("Q", request.hash_ids), dtype=np.uint64) for request in requests]
    except OverflowError as error:
        raise bad_trace(path, "bad_block_id", "a block id is negative or longer than 64 bits") from error
    full = [own[: request.in_ // block_size] for own, request in zip(ids, requests, strict=True)]
    return full, sum(map(len, ids)) - sum(map(len, full))


def bad_trace(path: Path, reason: str, found: str) -> InputError:
    """A file that can't be used."""
    return InputError(reason, str(path), found, _REMEDY)


def counts_from_marker(entries: _Entries, nested_times: NestedTimes) -> bool:
    """Whether times inside sub-agents count from their markers.

    If that is not said: a sub-agent's first request is nearer to 0 then than to the marker; the sub-agents of a file
    decide together.
    """
    if nested_times is not NestedTimes.AUTO:
        return nested_times is NestedTimes.RELATIVE
    votes = [_first_t(entry.requests) < entry.t / 2 for entry in entries if isinstance(entry, Subagent) and entry.t > 0]
    return 2 * sum(votes) >= len(votes)


def _first_t(entries: _Entries) -> float:
    return min((entry.t for entry in entries), default=0.0)


def _rows(entries: _Entries, agent_id: str, offset_s: float, *, is_relative: bool) -> Iterator[_Row]:
    """Requests of an agent and those below it; sub-agents are named by their place if they have no name."""
    for number, entry in enumerate(entries):
        if isinstance(entry, Subagent):
            name = entry.agent_id or f"{agent_id}/{number}"
            start_s = offset_s + entry.t if is_relative else 0.0
            yield from _rows(entry.requests, name, start_s, is_relative=is_relative)
        else:
            yield _Row(offset_s + entry.t, agent_id, entry)


def _n_subagents(entries: _Entries) -> int:
    return sum(1 + _n_subagents(entry.requests) for entry in entries if isinstance(entry, Subagent))


def _blocks(
    file: TraceFile, path: Path, rows: Sequence[_Row], paths: Sequence[BlockIds]
) -> tuple[ConversationBlocks, bool]:
    is_chained = True
    try:
        references = prefix_references(paths)
    except ValueError:
        is_chained = False
        paths = chained_ids(paths)
        references = prefix_references(paths)
    agent_ids = [row.agent_id for row in rows]
    return ConversationBlocks(
        conversation_id=file.id or path.stem,
        block_size=file.block_size,
        starts_at_s=start_s((row.t_s, row.request) for row in rows),
        times_s=np.array([row.t_s for row in rows], dtype=np.float64),
        models=[row.request.model for row in rows],
        agent_ids=agent_ids,
        prompt_tokens=np.array([row.request.in_ for row in rows], dtype=np.int64),
        prefix_requests=references.prefix_requests,
        shared_blocks=references.shared_blocks,
        agent_shared_blocks=_agent_shared_blocks(agent_ids, paths),
        n_new_blocks=references.n_new_blocks,
        new_blocks=references.new_blocks,
        has_own_ids=file.hash_id_scope == "local" or not is_chained,
    ), is_chained


def start_s(requests: Iterable[tuple[float, Request | PlainRequest]]) -> float | None:
    """The clock's time at t = 0, from the first timestamp that can be read; requests with their t."""
    for t_s, request in requests:
        if request.timestamp:
            try:
                return datetime.fromisoformat(request.timestamp).timestamp() - t_s
            except ValueError:
                return None
    return None


def _agent_shared_blocks(agent_ids: Sequence[str], paths: Sequence[BlockIds]) -> Ints:
    """Blocks shared with the same agent's request before."""
    before: dict[str, BlockIds] = {}
    shared = np.zeros(len(paths), dtype=np.int64)
    for index, (agent_id, ids) in enumerate(zip(agent_ids, paths, strict=True)):
        previous = before.get(agent_id, ids[:0])
        n = min(len(ids), len(previous))
        differs = np.flatnonzero(ids[:n] != previous[:n])
        shared[index] = differs[0] if len(differs) else n
        before[agent_id] = ids
    return shared
