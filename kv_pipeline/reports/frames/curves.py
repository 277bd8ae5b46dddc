"""Curves of reuse of a conversation, or of several added up."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from kv_pipeline.core.conversation_blocks import conversation_reuse, stored_conversation
from kv_pipeline.core.reuse import Reuse
from kv_pipeline.core.reuse_curves import block_prefills, capacity_curve, ttl_curve, working_set
from kv_pipeline.core.simulate import LIFETIMES_S

Frames = dict[str, pl.DataFrame]


def reuse_of(blocks: pl.DataFrame, block_size: int) -> Reuse:
    """Reuse within one conversation, given its TOKENIZED_BLOCKS in order."""
    return conversation_reuse(stored_conversation(blocks, block_size))


def curve_frames(reuses: Sequence[Reuse], lifetime: str, kv_bytes_per_token: float | None) -> Frames:
    """ttl_curve, capacity_curve and block_prefills of conversations measured each alone and added up.

    Args:
        reuses: One a conversation.
        lifetime: Name of the lifetime of block_prefills.
        kv_bytes_per_token: For capacities in GB; null without.
    """
    prefills = block_prefills(reuses)
    return {
        "ttl_curve": ttl_curve(reuses),
        "capacity_curve": capacity_curve(reuses, kv_bytes_per_token),
        "block_prefills": prefills.filter(pl.col("lifetime_s") == LIFETIMES_S[lifetime]),
    }


def working_set_frame(reuse: Reuse) -> pl.DataFrame:
    """The working set over time, from the first request on."""
    frame = working_set(reuse)
    return frame.with_columns(t_s=pl.col("t_s") - pl.col("t_s").min())
