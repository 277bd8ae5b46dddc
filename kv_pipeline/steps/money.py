"""Requests of a store with what they cost: what reports about money and contexts are made of."""

from __future__ import annotations

import polars as pl

from kv_pipeline.core.context import context_growth, with_prompt_tokens
from kv_pipeline.core.money import with_costs
from kv_pipeline.core.prices import PriceTable
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS
from kv_pipeline.schemas.conversations import CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.steps.conversations import user_requests
from kv_pipeline.store import Store

_KEYS = ("conversation_id", "request_index")
_COUNTED = pl.sum_horizontal("tools_tokens", "system_tokens", "messages_tokens")


def priced_requests(store: Store, user_id: str, prices: PriceTable) -> pl.DataFrame:
    """A user's traced requests with their blocks, costs and place in the context window.

    Returns:
        One row a request, sorted by agent: the columns of CONVERSATION_REQUESTS; model, billed tokens and times;
        counted_tokens, n_blocks and agent_shared_blocks of TOKENIZED_BLOCKS; and those of `with_costs`,
        `with_prompt_tokens` and `context_growth`.
    """
    conversations = store.read(CONVERSATIONS, [user_id])["conversation_id"].to_list()
    blocks = store.read(TOKENIZED_BLOCKS, conversations).select(
        *_KEYS, "n_blocks", "agent_shared_blocks", counted_tokens=_COUNTED
    )
    requests = user_requests(store, user_id, conversations)
    counted = requests.drop("tools_segment", "system_segment", "message_segments").join(
        blocks, on=_KEYS, maintain_order="left"
    )
    return context_growth(with_prompt_tokens(with_costs(counted, prices)))


def priced_unindexed(store: Store, user_id: str, prices: PriceTable) -> pl.DataFrame:
    """A user's recorded requests that are in no trace: they were billed as well, among them those that compact.

    Returns:
        One row a request of UNINDEXED_REQUESTS with usage, sorted by time: database_id, row_id, requested_at_utc,
        reason, conversation_id, model, billed tokens, prompt_tokens, and the columns of `with_costs`.
    """
    unindexed = store.read(UNINDEXED_REQUESTS, [user_id])
    usage = ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "output_tokens")
    raw = store.read(RAW_REQUESTS, unindexed["database_id"].unique().sort()).select(
        "database_id", "row_id", *usage, model=pl.coalesce("routed_model", "model")
    )
    billed = unindexed.join(raw, on=["database_id", "row_id"]).drop_nulls(usage[:4])
    return with_costs(billed.with_columns(prompt_tokens=pl.sum_horizontal(usage[:4])), prices).sort(
        "requested_at_utc", "database_id", "row_id"
    )
