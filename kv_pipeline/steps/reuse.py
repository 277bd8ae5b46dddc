"""Curves of the blocks model for what is in a store, computed when asked for: nothing of it is kept there."""

from __future__ import annotations

from collections.abc import Iterator

from kv_pipeline.core.conversation_blocks import (
    ConversationBlocks,
    conversation_reuse,
    fleet_reuse,
    stored_conversation,
)
from kv_pipeline.core.reuse_curves import ReuseFrames, reuse_frames
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS
from kv_pipeline.store import Store


def conversation_reuse_frames(
    store: Store, conversation_id: str, kv_bytes_per_token: float | None = None
) -> ReuseFrames:
    """Curves of one conversation alone, with one cache a model. Times are seconds since 1970.

    Args:
        store: The store.
        conversation_id: A partition of TOKENIZED_BLOCKS.
        kv_bytes_per_token: For capacities in GB.
    """
    groups = [conversation_reuse(blocks) for blocks in _conversations(store, [conversation_id])]
    return reuse_frames(groups, kv_bytes_per_token)


def conversations_reuse_frames(store: Store, kv_bytes_per_token: float | None = None) -> ReuseFrames:
    """Curves of all conversations, each alone, added up: a capacity is each one's, and there is no common clock."""
    groups = [conversation_reuse(blocks) for blocks in _conversations(store, store.partitions(TOKENIZED_BLOCKS.name))]
    return reuse_frames(groups, kv_bytes_per_token)


def fleet_reuse_frames(store: Store, kv_bytes_per_token: float | None = None) -> ReuseFrames:
    """Curves of all conversations together, sharing one cache a model. Times are seconds since 1970."""
    blocks = list(_conversations(store, store.partitions(TOKENIZED_BLOCKS.name)))
    return reuse_frames([fleet_reuse(blocks)], kv_bytes_per_token)


def _conversations(store: Store, keys: list[str]) -> Iterator[ConversationBlocks]:
    by_conversation = store.read(TOKENIZED_BLOCKS, keys).partition_by("conversation_id", maintain_order=True)
    return (stored_conversation(frame, store.settings.block_size) for frame in by_conversation)
