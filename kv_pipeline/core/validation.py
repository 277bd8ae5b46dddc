"""What the blocks model predicts beside what was billed, and the sums that rates are made of.

hit rate = read / (input + read + creation), over tokens; predicted: hit tokens / counted prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from kv_pipeline.core.conversation_blocks import fleet_uses, stored_conversation
from kv_pipeline.core.paths import BlockNumbers, block_paths
from kv_pipeline.core.simulate import LIFETIMES_S, Use, prefix_hit_blocks
from kv_pipeline.schemas.blocks import VALIDATION_REPORT, VALIDATION_SUMMARY
from kv_pipeline.schemas.columns import polars_schema

_CACHE_COLUMNS: Final = {"agent": ["agent_id", "model"], "conversation": ["model"]}
"""Requests of a conversation share a cache in a scope when they agree in these columns."""
_SUMMARY_KEYS: Final = ["conversation_id", "model", "scope", "lifetime"]


def conversation_paths(blocks: pl.DataFrame) -> Iterator[BlockNumbers]:
    """Block numbers of each request of one conversation, given its TOKENIZED_BLOCKS in order."""
    return block_paths(
        blocks["prefix_request_index"].to_list(),
        blocks["shared_blocks"].to_list(),
        blocks["new_block_hashes"].list.len().to_list(),
    )


def conversation_hits(blocks: pl.DataFrame) -> pl.DataFrame:
    """Predicted hit blocks of conversations for the scopes that each decides alone.

    Args:
        blocks: TOKENIZED_BLOCKS of any number of conversations, each in order.

    Returns:
        One row per (request, scope, lifetime): conversation_id, request_index, scope, lifetime, hit_blocks; in the
        order of the conversations, then of scope and lifetime.
    """
    conversations = blocks.partition_by("conversation_id", maintain_order=True)
    requests = pl.concat(frame.select("conversation_id", "request_index") for frame in conversations)
    return pl.concat(
        _hit_rows(requests, scope, np.concatenate([_own_hits(frame, columns) for frame in conversations]))
        for scope, columns in _CACHE_COLUMNS.items()
    )


def _own_hits(blocks: pl.DataFrame, cache_columns: list[str]) -> npt.NDArray[np.int64]:
    """Hit blocks of one conversation, shape (requests, lifetimes)."""
    n_blocks = int(blocks["new_block_hashes"].list.len().sum())
    caches = blocks.select(cache_columns).rows()
    return prefix_hit_blocks(map(Use, caches, _times_s(blocks), conversation_paths(blocks)), n_blocks)


def shared_hits(conversations: Iterable[pl.DataFrame], scope: str) -> pl.DataFrame:
    """Predicted hit blocks of conversations that share a cache.

    Args:
        conversations: TOKENIZED_BLOCKS of each, in order.
        scope: Name of the scope in the result.

    Returns:
        One row per (request, lifetime): conversation_id, request_index, scope, lifetime, hit_blocks.
    """
    frames = [frame for frame in conversations if frame.height]
    if not frames:
        return pl.DataFrame(schema={"conversation_id": pl.String, "request_index": pl.UInt32} | _HIT_SCHEMA)
    fleet = fleet_uses([stored_conversation(frame, block_size=1) for frame in frames])  # hits are counted in blocks
    hits = prefix_hit_blocks(fleet.uses, fleet.n_blocks)
    in_order = np.empty_like(hits)
    in_order[fleet.order] = hits
    return _hit_rows(pl.concat(frame.select("conversation_id", "request_index") for frame in frames), scope, in_order)


_HIT_SCHEMA: Final = {"scope": pl.String, "lifetime": pl.String, "hit_blocks": pl.UInt32}


def _times_s(blocks: pl.DataFrame) -> list[float]:
    return (blocks["requested_at_utc"].dt.timestamp("us") / 1e6).to_list()


def _hit_rows(requests: pl.DataFrame, scope: str, hits: npt.NDArray[np.int64]) -> pl.DataFrame:
    return pl.concat(
        requests.with_columns(
            scope=pl.lit(scope),
            lifetime=pl.lit(lifetime),
            hit_blocks=pl.Series(hits[:, column], dtype=pl.UInt32),
        )
        for column, lifetime in enumerate(LIFETIMES_S)
    )


def billed_requests(requests: pl.DataFrame) -> pl.DataFrame:
    """What a prediction is compared with, per request.

    Args:
        requests: Per request the columns of TOKENIZED_BLOCKS and the billed usage.

    Returns:
        The identity columns, prompt_tokens, billed_prompt_tokens and billed_read_tokens.
    """
    creation = pl.col("cache_write_5m_tokens") + pl.col("cache_write_1h_tokens")
    return requests.select(
        "conversation_id", "request_index", "agent_id", "model",
        prompt_tokens=pl.col("tools_tokens") + pl.col("system_tokens") + pl.col("messages_tokens"),
        billed_prompt_tokens=pl.col("input_tokens") + pl.col("cache_read_tokens") + creation,
        billed_read_tokens=pl.col("cache_read_tokens"),
    )  # fmt: skip


def report_rows(billed: pl.DataFrame, hits: pl.DataFrame, block_size: int) -> pl.DataFrame:
    """Rows with the columns of `VALIDATION_REPORT`; those of shared scopes go into the roll-up only.

    Args:
        billed: As `billed_requests` gives.
        hits: Per (request, scope, lifetime) the predicted hit blocks.
        block_size: Tokens a block.
    """
    return (
        hits.join(billed, on=["conversation_id", "request_index"], maintain_order="left")
        .with_columns(hit_tokens=pl.col("hit_blocks") * block_size)
        .select(polars_schema(VALIDATION_REPORT).names())
    )


def summarise(report: pl.DataFrame, block_size: int) -> pl.DataFrame:
    """Frame of `VALIDATION_SUMMARY` from rows of `VALIDATION_REPORT`: requests without a bill are left out."""
    scale = pl.col("billed_prompt_tokens") / pl.col("prompt_tokens")
    error = (pl.col("hit_tokens") * scale - pl.col("billed_read_tokens")).abs()
    sums = ["prompt_tokens", "hit_tokens", "billed_prompt_tokens", "billed_read_tokens"]
    return (
        report.drop_nulls("billed_prompt_tokens")
        .group_by(_SUMMARY_KEYS)
        .agg(
            pl.len().alias("n_requests"),
            *(pl.col(name).cast(pl.Int64).sum() for name in sums),
            (error <= block_size * scale).sum().cast(pl.UInt32).alias("n_within_one_block"),
        )
        .select(polars_schema(VALIDATION_SUMMARY).names())
        .sort(_SUMMARY_KEYS)
    )
