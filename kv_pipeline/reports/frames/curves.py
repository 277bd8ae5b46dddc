"""Curves of reuse of a conversation, or of several added up."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from kv_pipeline.core.conversation_blocks import (
    ConversationBlocks,
    conversation_reuse,
    fleet_reuse,
    stored_conversation,
)
from kv_pipeline.core.reuse import Reuse
from kv_pipeline.core.reuse_curves import block_prefills, capacity_curve, ttl_curve, working_set
from kv_pipeline.core.simulate import LIFETIMES_S
from kv_pipeline.reports.figures.curves import SCOPES

Frames = dict[str, pl.DataFrame]


def curve_frames(reuses: Sequence[Reuse], lifetime: str, kv_bytes_per_token: float | None) -> Frames:
    """ttl_curve, capacity_curve and block_prefills of groups of caches measured each alone and added up.

    Args:
        reuses: One a group.
        lifetime: Name of the lifetime of block_prefills.
        kv_bytes_per_token: For capacities in GB; null without.
    """
    prefills = block_prefills(reuses)
    return {
        "ttl_curve": ttl_curve(reuses).with_columns(scope=pl.lit(SCOPES["conversation"])),
        "capacity_curve": capacity_curve(reuses, kv_bytes_per_token),
        "block_prefills": prefills.filter(pl.col("lifetime_s") == LIFETIMES_S[lifetime]),
    }


def working_set_frame(reuse: Reuse) -> pl.DataFrame:
    """The working set over time, from the first request on."""
    frame = working_set(reuse)
    return frame.with_columns(t_s=pl.col("t_s") - pl.col("t_s").min())


def fleet_curve_frames(
    conversations: Sequence[ConversationBlocks], lifetime: str, kv_bytes_per_token: float | None
) -> Frames:
    """The same of a cache that all conversations share, and the working set of all; ttl_curve has both scopes."""
    alone = ttl_curve([conversation_reuse(conversation, ()) for conversation in conversations])
    shared = fleet_reuse(conversations)
    frames = curve_frames([shared], lifetime, kv_bytes_per_token)
    scopes = [
        alone.with_columns(scope=pl.lit(SCOPES["conversation"])),
        frames["ttl_curve"].with_columns(scope=pl.lit(SCOPES["fleet"])),
    ]
    return frames | {"ttl_curve": pl.concat(scopes), "working_set": working_set_frame(shared)}


def stored(blocks: pl.DataFrame, block_size: int) -> ConversationBlocks:
    """A conversation's TOKENIZED_BLOCKS, in order, as the blocks that reuse is measured from."""
    return stored_conversation(blocks, block_size)
