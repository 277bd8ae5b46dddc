"""What each compaction dropped, what it cost, and whether it paid for itself.

Without the compaction, the agent's later requests would have read the dropped tokens from the cache, up to its next
compaction or the end of the conversation. With it, the first request afterwards pays for tokens that it can't read, and
so did the request that wrote the summary:

    carried = dropped tokens x sum of the read prices of those later requests, the first one included
    rebuild = tokens that the first request did not read x its loss per token (see core/money.py)
    saved   = carried - rebuild - cost of the compaction request where it is known

Simplifications: the user's new message is part of the rebuild, although it would have been written anyway; the old
context is taken to stay in the cache, although a pause might have lost it; and where it would have outgrown the window
(`is_forced`) there was no choice.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.core.context import AGENT

COMPACTION_COLUMNS: Final = (
    "conversation_id", "agent_id", "agent_request_index", "requested_at_utc", "tokens_before", "tokens_after",
    "dropped_tokens", "rebuilt_tokens", "n_later_requests", "is_forced", "carried_usd", "rebuild_usd",
    "compaction_request_usd", "saved_usd", "has_paid",
)  # fmt: skip
_PERIOD: Final = (*AGENT, "_period")


def compactions(requests: pl.DataFrame, side_requests: pl.DataFrame | None = None) -> pl.DataFrame:
    """Compactions of agents, each with its balance.

    Args:
        requests: One row a request, as `context_growth` and `with_costs` give, with is_after_compaction and
            output_tokens.
        side_requests: Requests of no trace that were sent while their conversation went on, among them those that wrote
            summaries: conversation_id, requested_at_utc, prompt_tokens, cost_usd. None if unknown.

    Returns:
        One row per compaction whose agent has a request before and one after it, with `COMPACTION_COLUMNS`:
        agent_request_index and requested_at_utc of the first request afterwards; tokens_before (the prompt before, and
        its answer); tokens_after (the first prompt afterwards); dropped_tokens, the difference; rebuilt_tokens
        (written by that request); n_later_requests (itself included); is_forced (some later prompt would not have
        fitted the window with the dropped tokens; null if the window is unknown); the balance in dollars, null
        without prices; compaction_request_usd (null if not found, then 0 in the balance); has_paid (saved_usd > 0).
    """
    firsts = _first_requests(requests)
    found = _summary_costs(firsts, side_requests)
    return (
        firsts.join(found, on=[*AGENT, "agent_request_index"], how="left", maintain_order="left")
        .with_columns(
            carried_usd=pl.col("dropped_tokens") * pl.col("_reads_usd_per_mtok") / 1e6,
            rebuild_usd=pl.col("_unread_tokens") * pl.col("loss_usd_per_token"),
        )
        .with_columns(
            saved_usd=pl.col("carried_usd") - pl.col("rebuild_usd") - pl.col("compaction_request_usd").fill_null(0.0)
        )
        .with_columns(has_paid=pl.col("saved_usd") > 0)
        .select(COMPACTION_COLUMNS)
    )


def _first_requests(requests: pl.DataFrame) -> pl.DataFrame:
    """First requests after a compaction, with what was before, what was dropped, and sums over the requests to come."""
    prompt = pl.col("prompt_tokens").cast(pl.Int64)
    written = pl.col("cache_write_5m_tokens") + pl.col("cache_write_1h_tokens")
    context = prompt + pl.col("output_tokens").cast(pl.Int64).fill_null(0)
    read = pl.col("read_usd_per_mtok")
    return (
        requests.sort(*AGENT, "agent_request_index")
        .with_columns(
            _period=pl.col("is_after_compaction").cum_sum().over(AGENT),
            tokens_before=context.shift(1).over(AGENT),
            tokens_after=prompt,
            rebuilt_tokens=written,
            _before_utc=pl.col("requested_at_utc").shift(1).over(AGENT),
            _unread_tokens=pl.col("input_tokens") + written,
        )
        .with_columns(
            dropped_tokens=pl.col("tokens_before") - prompt,
            n_later_requests=pl.len().over(_PERIOD).cast(pl.UInt32),
            _reads_usd_per_mtok=pl.when(read.is_null().any().over(_PERIOD).not_()).then(read.sum().over(_PERIOD)),
            _longest_tokens=prompt.max().over(_PERIOD),
        )
        .filter("is_after_compaction", pl.col("tokens_before").is_not_null())
        .with_columns(is_forced=pl.col("_longest_tokens") + pl.col("dropped_tokens") > pl.col("context_window_tokens"))
    )


def _summary_costs(firsts: pl.DataFrame, side_requests: pl.DataFrame | None) -> pl.DataFrame:
    """Cost of the request that wrote each summary: the last one in between that had most of the old context."""
    keys = [*AGENT, "agent_request_index"]
    if side_requests is None:
        return firsts.select(*keys, compaction_request_usd=pl.lit(None, dtype=pl.Float64)).clear()
    sides = side_requests.select(
        "conversation_id", "cost_usd", _side_utc=pl.col("requested_at_utc"), _side_tokens=pl.col("prompt_tokens")
    )
    return (
        firsts.select(*keys, "requested_at_utc", "_before_utc", "tokens_before")
        .join(sides, on="conversation_id")
        .filter(
            pl.col("_side_utc").is_between("_before_utc", "requested_at_utc"),
            pl.col("_side_tokens") * 2 >= pl.col("tokens_before"),
        )
        .sort("_side_utc", maintain_order=True)
        .group_by(keys)
        .agg(compaction_request_usd=pl.col("cost_usd").last())
    )
