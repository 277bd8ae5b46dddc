"""From the store to trace files: selects, splits, numbers blocks, writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import polars as pl

from kv_pipeline.core.paths import renumbered
from kv_pipeline.core.tokenizer import encoder
from kv_pipeline.core.validation import conversation_paths
from kv_pipeline.errors import StoreError, UsageError
from kv_pipeline.export.options import ExportOptions, HashIdScope, Profile
from kv_pipeline.export.trace_json import Json, TraceRequest, agent_tree, trace_json
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATIONS
from kv_pipeline.steps.conversations import Progress, no_progress, user_requests
from kv_pipeline.steps.index import conversations
from kv_pipeline.steps.segments import load_segments
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
        conversation_ids: Only these; all if None. Session ids alone are understood.
        progress: Told of every conversation.

    Raises:
        UsageError: The options exclude each other, or a conversation does not exist.
        StoreError: Traces are missing, or another block size is asked for after a purge.
    """
    options.check()
    out.mkdir(parents=True, exist_ok=True)
    keys = _selected(store, conversation_ids)
    block_size = options.block_size or store.settings.block_size
    ids: dict[int, int] = {}
    files: list[Path] = []
    n_requests, left_out = 0, dict[str, int]()
    for key in keys:
        for piece in _pieces(store, key, block_size, options):
            if piece.requests.height < options.min_requests:
                left_out["below --min-requests"] = left_out.get("below --min-requests", 0) + 1
                continue
            trace_id = f"trace_{len(files) + 1:04d}" if options.anonymize else key.replace("/", "_") + piece.suffix
            numbers = {} if options.scope is HashIdScope.LOCAL else ids
            files.append(_write(store, out, trace_id, piece, block_size, options, numbers))
            n_requests += piece.requests.height
        progress(1)
    return ExportResult(files, n_requests, left_out)
