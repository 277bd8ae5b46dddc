"""From the store to trace files: selects, splits, numbers blocks, writes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import polars as pl

from kv_pipeline.core.sections import SectionTokenizer
from kv_pipeline.core.tokenizer import encoder
from kv_pipeline.core.validation import conversation_paths
from kv_pipeline.errors import StoreError
from kv_pipeline.export.analysis import trace_analysis
from kv_pipeline.export.options import ExportOptions, HashIdScope, Profile
from kv_pipeline.export.trace_json import MAIN_AGENT, Json, TraceRequest, agent_tree, trace_json
from kv_pipeline.names import safe_name
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES
from kv_pipeline.schemas.columns import hash_lists
from kv_pipeline.schemas.conversations import AGENTS
from kv_pipeline.steps.conversations import Progress, no_progress, user_requests
from kv_pipeline.steps.segments import load_segments
from kv_pipeline.steps.selection import selected_conversations
from kv_pipeline.steps.tokenizing import tokenize_conversation
from kv_pipeline.store import Store

_SECTIONS: Final = ("tools_tokens", "system_tokens")


class ExportResult(NamedTuple):
    """What an export wrote and left out.

    Attributes:
        files: Trace files in order.
        n_requests: Requests in them.
        left_out: Reason to number of conversations or pieces of them.
    """

    files: list[Path]
    n_requests: int
    left_out: dict[str, int]


class _Piece(NamedTuple):
    """A conversation, or the part of it between two gaps."""

    conversation_id: str
    suffix: str
    requests: pl.DataFrame
    agents: list[Json]


def export_traces(
    store: Store,
    out: Path,
    options: ExportOptions,
    conversation_ids: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> ExportResult:
    """Write trace files of conversations.

    Block numbers are given in the order of first appearance: conversations by id, requests by time, blocks by
    position; in the local scope they start at 1 with every trace.

    Args:
        store: The store.
        out: Folder for the files; made if missing.
        options: What to write.
        conversation_ids: Only these; all if None. Session ids, or how they begin, are understood.
        progress: Told of every conversation.

    Raises:
        UsageError: The options exclude each other, or a conversation does not exist.
        StoreError: Traces are missing, or another block size is asked for after a purge.
    """
    options.check()
    keys = selected_conversations(store, conversation_ids)
    out.mkdir(parents=True, exist_ok=True)
    numbering = Numbering(options.block_size or store.settings.block_size, options.scope)
    files: list[Path] = []
    taken: set[str] = set()
    n_requests, left_out = 0, Counter[str]()
    for key in keys:
        for piece in _pieces(store, key, numbering.block_size, options):
            if piece.requests.height < options.min_requests:
                left_out["fewer requests than --min-requests"] += 1
                continue
            wanted = f"trace_{len(files) + 1:04d}" if options.anonymize else key.replace("/", "_") + piece.suffix
            trace_id = _unique(wanted, taken)
            taken.add(trace_id)
            files.append(_write(store, out, trace_id, piece, numbering, options))
            n_requests += piece.requests.height
        progress(1)
    return ExportResult(files, n_requests, dict(left_out))


def _unique(wanted: str, taken: set[str]) -> str:
    """User a_b with session c and user a with session b_c would share a file."""
    names = (wanted if number == 1 else f"{wanted}_{number}" for number in itertools.count(1))
    return next(name for name in names if name not in taken)


class Numbering:
    """Gives blocks their published numbers.

    Args:
        block_size: Tokens a block.
        scope: How far a number stands for the same block.
    """

    def __init__(self, block_size: int, scope: HashIdScope) -> None:
        self.block_size = block_size
        self._scope = scope
        self._ids: dict[int, int] = {}

    def ids_of(self, piece: _Piece) -> list[list[int]]:
        """Per request of a piece its block numbers in prompt order."""
        if self._scope is HashIdScope.LOCAL:
            self._ids = {}
        return [
            [self._ids.setdefault(block, len(self._ids) + 1) for block in path]
            for path in piece.requests["path"].to_list()
        ]


def _pieces(store: Store, key: str, block_size: int, options: ExportOptions) -> Iterator[_Piece]:
    user_id = key.partition("/")[0]
    agents = store.read(AGENTS, [user_id]).filter(pl.col("conversation_id") == key).to_dicts()
    requests = _with_blocks(store, key, block_size)
    if not options.with_subagents:
        requests = requests.filter(pl.col("agent_id") == _main_agent(requests))
    parts = _split(requests, options.split_at_gap_s)
    for number, part in enumerate(parts, start=1):
        yield _Piece(key, f"_s{number}" if len(parts) > 1 else "", part, agents)


def _main_agent(requests: pl.DataFrame) -> str:
    """The main thread; in a conversation without one, the agent that spoke first."""
    agents = requests["agent_id"]
    return MAIN_AGENT if MAIN_AGENT in agents else str(agents[0])


def _with_blocks(store: Store, key: str, block_size: int) -> pl.DataFrame:
    """TRACES of a conversation with section tokens and `path`, the hashes of its blocks of the wanted size."""
    traces, blocks = store.read(TRACES, [key]), store.read(TOKENIZED_BLOCKS, [key])
    if traces.is_empty() or traces.height != blocks.height:
        raise StoreError(f"Conversation {key} is not complete in the store. Run `kv-pipeline run` first.")
    if block_size != store.settings.block_size:
        blocks = _rehashed(store, key, block_size)
    hashes = blocks["new_block_hashes"].explode().drop_nulls().to_numpy()
    paths = [hashes[path] for path in conversation_paths(blocks)]
    return traces.with_columns(*(blocks[name] for name in _SECTIONS), path=hash_lists(paths))


def _rehashed(store: Store, key: str, block_size: int) -> pl.DataFrame:
    requests = user_requests(store, key.partition("/")[0], [key])
    segments = load_segments(store, requests)
    tokenizer = SectionTokenizer(encoder(), segments.contents)
    return tokenize_conversation(store.salt, block_size, tokenizer, segments, requests)


def _split(requests: pl.DataFrame, gap_s: float | None) -> list[pl.DataFrame]:
    """Parts between stretches of more than `gap_s` in which no request was under way; each starts at t = 0."""
    if gap_s is None:
        return [requests]
    ended = (pl.col("t_s") + pl.col("api_time_s").fill_null(0.0)).cum_max().shift(1)
    numbered = requests.with_columns(part=(pl.col("t_s") - ended > gap_s).fill_null(value=False).cum_sum())
    return [
        part.drop("part").with_columns(pl.col("t_s") - pl.col("t_s").min())
        for part in numbered.partition_by("part", maintain_order=True)
    ]


def _write(store: Store, out: Path, trace_id: str, piece: _Piece, numbering: Numbering, options: ExportOptions) -> Path:
    rows = piece.requests.drop("path").to_dicts()
    hash_ids = numbering.ids_of(piece)
    requests = [TraceRequest(row, ids) for row, ids in zip(rows, hash_ids, strict=True)]
    root = agent_tree(requests, piece.agents)
    if root is None:
        raise StoreError(f"Conversation {piece.conversation_id} has no requests.")
    analysis = trace_analysis(store, piece.conversation_id, piece.requests, piece.agents, options)
    trace = trace_json(trace_id, root, numbering.block_size, options, analysis)
    path = out / f"{safe_name(trace_id)}.json"
    _write_json(path, trace)
    if options.profile is Profile.STRICT:
        _write_json(out / "analysis" / path.name, {"id": trace_id, **analysis})
    return path


def _write_json(path: Path, value: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(msgspec.json.encode(value))
    temporary.replace(path)
