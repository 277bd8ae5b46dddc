"""Conversations of a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
import polars as pl

from kv_pipeline.core.paths import PrefixReferences
from kv_pipeline.core.sections import SectionTokenizer
from kv_pipeline.core.tokenizer import encoder
from kv_pipeline.errors import StoreError
from kv_pipeline.export.analysis import trace_analysis
from kv_pipeline.export.options import ExportOptions
from kv_pipeline.export.pieces import Json, Piece, coarser
from kv_pipeline.export.sources import Loaded
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATIONS
from kv_pipeline.steps.conversations import user_requests
from kv_pipeline.steps.segments import load_segments
from kv_pipeline.steps.selection import selected_conversations
from kv_pipeline.steps.tokenizing import tokenize_conversation
from kv_pipeline.store import Store

_SECTIONS: Final = ("tools_tokens", "system_tokens")


class StoreConversations:
    """Conversations of a store, in blocks of a size.

    Multiples of the store's block size are made of its blocks; for other sizes, prompts are tokenised again.

    Args:
        store: The store.
        block_size: Tokens a block.
        wanted: Only these: full ids, session ids, or how they begin; all if None.

    Raises:
        UsageError: A conversation does not exist.
    """

    def __init__(self, store: Store, block_size: int, wanted: Sequence[str] | None = None) -> None:
        self._store, self._block_size = store, block_size
        self.names: Sequence[str] = selected_conversations(store, wanted)

    @cached_property
    def _starts_s(self) -> dict[str, float]:
        users = sorted({name.partition("/")[0] for name in self.names})
        times = self._store.read(CONVERSATIONS, users).select(
            "conversation_id", pl.col("first_request_at_utc").dt.timestamp("us") / 1e6
        )
        return dict(times.drop_nulls().iter_rows())

    def starts_at_s(self, name: str) -> float | None:
        """Unix time of its first request."""
        return self._starts_s.get(name)

    def load(self, name: str) -> Loaded:
        """One conversation.

        Raises:
            StoreError: Its tables are not complete, or blocks of this size need content that was purged.
        """
        traces, blocks = self._store.read(TRACES, [name]), self._store.read(TOKENIZED_BLOCKS, [name])
        if traces.is_empty() or traces.height != blocks.height:
            raise StoreError(f"Conversation {name} is not complete in the store. Run `kv-pipeline run` first.")
        own = self._store.settings.block_size
        is_multiple = self._block_size % own == 0
        if not is_multiple:
            blocks = _rehashed(self._store, name, self._block_size)
        agents = self._store.read(AGENTS, [name.partition("/")[0]]).filter(pl.col("conversation_id") == name).to_dicts()
        piece = Piece(
            conversation_id=name,
            suffix="",
            requests=traces.with_columns(blocks[column] for column in _SECTIONS),
            agents=agents,
            block_size=own if is_multiple else self._block_size,
            references=_references(blocks),
            tail_ids=blocks["tail_hash"].to_list(),
            starts_at_s=self.starts_at_s(name),
            has_own_ids=False,
        )
        return Loaded(coarser(piece, self._block_size // own) if is_multiple else piece)

    def analysis(self, piece: Piece, options: ExportOptions) -> Json:
        """Counts and rates of the requests."""
        return trace_analysis(self._store, piece.conversation_id, piece.requests, piece.agents, options)


def _references(blocks: pl.DataFrame) -> PrefixReferences:
    new = blocks["new_block_hashes"]
    return PrefixReferences(
        blocks["prefix_request_index"].to_numpy(),
        blocks["shared_blocks"].cast(pl.Int64).to_numpy(),
        new.list.len().cast(pl.Int64).to_numpy(),
        new.explode().drop_nulls().to_numpy().astype(np.uint64, copy=False),
    )


def _rehashed(store: Store, name: str, block_size: int) -> pl.DataFrame:
    requests = user_requests(store, name.partition("/")[0], [name])
    segments = load_segments(store, requests)
    tokenizer = SectionTokenizer(encoder(), segments.contents)
    return tokenize_conversation(store.salt, block_size, tokenizer, segments, requests)
