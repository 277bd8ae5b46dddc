"""Frames behind the tables that the command line prints.

hit rate = cache read / (input + cache read + cache write), over tokens, of the requests that were billed.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.schemas.blocks import VALIDATION_SUMMARY
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.steps.fleet import FLEET
from kv_pipeline.steps.index import conversations
from kv_pipeline.steps.plan import traced
from kv_pipeline.store import Store

HEADLINE_SCOPE: Final = "conversation"
_SUMS: Final = (
    "n_requests", "prompt_tokens", "hit_tokens", "billed_prompt_tokens", "billed_read_tokens", "n_within_one_block",
)  # fmt: skip


def conversation_list(store: Store) -> pl.DataFrame:
    """One row per conversation with requests: user, size, times, models and sub-agents."""
    subagents = (
        store.read(AGENTS, store.partitions(AGENTS.name))
        .filter(pl.col("agent_id") != "main", pl.col("n_requests") > 0)
        .group_by("conversation_id")
        .agg(n_subagents=pl.len(), subagent_types=pl.col("subagent_type").fill_null("unlinked").unique().sort())
    )
    return (
        traced(conversations(store))
        .join(subagents, on="conversation_id", how="left", maintain_order="left")
        .with_columns(pl.col("n_subagents").fill_null(0), pl.col("subagent_types").fill_null([]))
        .drop("fingerprint")
    )


def conversation_summary(store: Store) -> pl.DataFrame:
    """One row per conversation: requests, sub-agents, tokens, simulated and billed hit rate and their difference.

    The simulation is that of the blocks model with the lifetime that the conversation's markers ask for.
    """
    listed = conversation_list(store)
    headline = listed.select("conversation_id", lifetime=pl.col("marked_lifetime").fill_null("5m"))
    rates = with_rates(
        _summary(store)
        .filter(pl.col("scope") == HEADLINE_SCOPE)
        .join(headline, on=["conversation_id", "lifetime"], how="semi")
        .group_by("conversation_id", "lifetime")
        .agg(pl.col(_SUMS).sum())
    )
    columns = ["conversation_id", "lifetime", "prompt_tokens", "billed_prompt_tokens", "simulated_hit_rate",
               "billed_hit_rate", "difference_points"]  # fmt: skip
    shown = listed.select(
        "conversation_id", "user_id", "n_requests", "n_rebuilt", "n_approximate", "n_subagents", "n_compactions",
        "match_rate",
    )  # fmt: skip
    return shown.join(rates.select(columns), on="conversation_id", how="left", maintain_order="left")


def validation_table(store: Store, by: list[str]) -> pl.DataFrame:
    """Simulated against billed, for every scope and lifetime.

    Args:
        store: The store.
        by: Columns to group by besides scope and lifetime: conversation_id, model, or none for the fleet.
    """
    keys = [*by, "scope", "lifetime"]
    return with_rates(_summary(store).group_by(keys).agg(pl.col(_SUMS).sum())).sort(keys)


def with_approximate(store: Store, table: pl.DataFrame) -> pl.DataFrame:
    """A table with `conversation_id`, and how many of each conversation's requests are approximate."""
    known = conversations(store).select("conversation_id", "n_approximate")
    return table.join(known, on="conversation_id", how="left", maintain_order="left")


def with_rates(sums: pl.DataFrame) -> pl.DataFrame:
    """Add hit rates (0 to 1; 0 without tokens), their difference in points, and the share predicted within a block."""
    simulated = (pl.col("hit_tokens") / pl.col("prompt_tokens")).fill_nan(0.0)
    billed = (pl.col("billed_read_tokens") / pl.col("billed_prompt_tokens")).fill_nan(0.0)
    return sums.with_columns(
        simulated_hit_rate=simulated,
        billed_hit_rate=billed,
        difference_points=(simulated - billed) * 100,
        share_within_one_block=(pl.col("n_within_one_block") / pl.col("n_requests")).fill_nan(0.0),
    )


def not_traced(store: Store) -> pl.DataFrame:
    """Recorded requests that are in no trace, by user and reason."""
    unindexed = store.read(UNINDEXED_REQUESTS, store.partitions(UNINDEXED_REQUESTS.name))
    user_id = pl.col("database_id").str.split("/").list.first().alias("user_id")
    return unindexed.group_by(user_id, "reason").agg(n_requests=pl.len()).sort("user_id", "reason")


def users_without_conversations(store: Store) -> list[str]:
    """Users whose transcripts name none of their requests, or who have no transcripts."""
    known = store.read(CONVERSATIONS, store.partitions(CONVERSATIONS.name))
    with_traces = set(traced(known)["user_id"])
    return [user for user in store.partitions(CONVERSATIONS.name) if user not in with_traces]


def _summary(store: Store) -> pl.DataFrame:
    return store.read(VALIDATION_SUMMARY, [FLEET])
