"""What caching did for one request: the one that lost most, which is where to look first."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from kv_pipeline.core.prices import PriceTable
from kv_pipeline.reports.frames.requests import all_conversations
from kv_pipeline.reports.ratios import ratio
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.store import Store

_REQUEST: Final = ["conversation_id", "request_index"]


def cache_metrics(store: Store, prices: PriceTable) -> dict[str, Any]:
    """Metrics of the billed request that lost most tokens, the latest of those; nothing of a store without any.

    Returns:
        breakpoints_used, system_tokens (tools included) and conversation_tokens as counted, messages, hit_rate
        (0 to 1) as billed, savings_usd (None without a price), model, time (ISO 8601, UTC), lost_tokens.
    """
    users = store.partitions(CACHE_REPORT.name)
    report = store.read(CACHE_REPORT, users).drop_nulls("billed_read_tokens")
    if report.is_empty():
        return {}
    row = report.sort("lost_tokens", "requested_at_utc", *_REQUEST).row(-1, named=True)
    read = row["billed_read_tokens"]
    prompt = read + sum(row[f"billed_{kind}_tokens"] or 0 for kind in ("write_5m", "write_1h", "input"))
    return {
        "breakpoints_used": row["n_breakpoints"],
        "system_tokens": row["tools_tokens"] + row["system_tokens"],
        "conversation_tokens": row["messages_tokens"],
        "messages": _n_messages(store, row),
        "hit_rate": ratio(read, prompt),
        "savings_usd": _savings_usd(store, row, prices),
        "model": row["model"],
        "time": row["requested_at_utc"].isoformat(),
        "lost_tokens": row["lost_tokens"],
    }


def _n_messages(store: Store, row: dict[str, Any]) -> int | None:
    """Messages that the request sent."""
    user_id = row["conversation_id"].partition("/")[0]
    mine = [pl.col(name) == row[name] for name in _REQUEST]
    place = store.read(CONVERSATION_REQUESTS, [user_id]).filter(mine).select("database_id", "billed_row_id")
    if place.is_empty():
        return None
    database_id, row_id = place.row(0)
    sent = store.read(RAW_REQUESTS, [database_id]).filter(pl.col("row_id") == row_id)["message_segments"]
    return len(sent[0]) if len(sent) else None


def _savings_usd(store: Store, row: dict[str, Any], prices: PriceTable) -> float | None:
    for conversation in all_conversations(store, [row["conversation_id"]], prices):
        savings = conversation.requests.filter(pl.col("request_index") == row["request_index"])["savings_usd"]
        return None if savings.is_empty() or savings[0] is None else float(savings[0])
    return None
