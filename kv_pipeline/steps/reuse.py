"""Curves of the blocks model for what is in a store, computed when asked for: nothing of it is kept there."""

from __future__ import annotations

from kv_pipeline.core.conversation_blocks import conversation_reuse, fleet_reuse, stored_conversation
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
    blocks = stored_conversation(store.read(TOKENIZED_BLOCKS, [conversation_id]), store.settings.block_size)
    return reuse_frames([conversation_reuse(blocks)], kv_bytes_per_token)


def fleet_reuse_frames(store: Store, kv_bytes_per_token: float | None = None) -> ReuseFrames:
    """Curves of all conversations together, sharing one cache a model. Times are seconds since 1970."""
    block_size = store.settings.block_size
    frames = store.read(TOKENIZED_BLOCKS, store.partitions(TOKENIZED_BLOCKS.name)).partition_by(
        "conversation_id", maintain_order=True
    )
    return reuse_frames([fleet_reuse([stored_conversation(frame, block_size) for frame in frames])], kv_bytes_per_token)
