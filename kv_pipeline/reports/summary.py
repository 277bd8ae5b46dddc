"""Frames behind the tables that the command line prints.

hit rate = cache read / (input + cache read + cache write), over tokens, of the requests that were billed.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.schemas.blocks import VALIDATION_SUMMARY
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.steps.fleet import FLEET
from kv_pipeline.steps.index import conversations
from kv_pipeline.steps.plan import traced
from kv_pipeline.steps.simulation import AS_DOCUMENTED, ModelOptions, simulate
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

    The simulation is that of the blocks model with the lifetime that the conversation's markers ask for. Beside it what
    the API model predicts: predicted_hit_rate and exact_share, null where no request was billed.
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
    predicted = api_table(cache_report(store), ["conversation_id"]).select(
        "conversation_id", "predicted_hit_rate", "exact_share"
    )
    columns = ["conversation_id", "lifetime", "prompt_tokens", "billed_prompt_tokens", "simulated_hit_rate",
               "billed_hit_rate", "difference_points"]  # fmt: skip
    shown = listed.select(
        "conversation_id", "user_id", "n_requests", "n_rebuilt", "n_approximate", "n_subagents", "n_compactions",
        "match_rate",
    )  # fmt: skip
    return shown.join(rates.select(columns), on="conversation_id", how="left", maintain_order="left").join(
        predicted, on="conversation_id", how="left", maintain_order="left"
    )


def validation_table(store: Store, by: list[str]) -> pl.DataFrame:
    """Simulated against billed, for every scope and lifetime.

    Args:
        store: The store.
        by: Columns to group by besides scope and lifetime: conversation_id, model, or none for the fleet.
    """
    keys = [*by, "scope", "lifetime"]
    return with_rates(_summary(store).group_by(keys).agg(pl.col(_SUMS).sum())).sort(keys)


def api_table(report: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """The API model's predictions against the bill, of requests that were billed.

    The bill says how long a prompt is; the model only says how much of it is read, so both rates share a denominator.

    Args:
        report: Rows of CACHE_REPORT.
        by: Columns to group by: conversation_id, model, or none for the fleet.

    Returns:
        The columns of `by`, n_requests, predicted_read_tokens, billed_read_tokens, billed_prompt_tokens, n_caching,
        predicted_hit_rate, billed_hit_rate (0 to 1; 0 without tokens), difference_points, and exact_share: of the
        n_caching requests that use caching, those whose read was predicted to the token.
    """
    kinds = ("read", "write_5m", "write_1h", "input")
    is_exact = pl.col("uses_caching") & (pl.col("predicted_read_tokens") == pl.col("billed_read_tokens"))
    sums = [
        pl.len().alias("n_requests"),
        pl.col("predicted_read_tokens", "billed_read_tokens", "billed_prompt_tokens").sum(),
        pl.col("uses_caching").sum().alias("n_caching"),
        is_exact.sum().alias("n_exact"),
    ]
    billed = report.drop_nulls("billed_read_tokens").with_columns(
        billed_prompt_tokens=pl.sum_horizontal([f"billed_{kind}_tokens" for kind in kinds])
    )
    rate = {name: pl.col(f"{name}_read_tokens") / pl.col("billed_prompt_tokens") for name in ("predicted", "billed")}
    grouped = billed.group_by(by).agg(sums).sort(by) if by else billed.select(sums)
    return grouped.with_columns(
        predicted_hit_rate=rate["predicted"].fill_nan(0.0),
        billed_hit_rate=rate["billed"].fill_nan(0.0),
        difference_points=((rate["predicted"] - rate["billed"]) * 100).fill_nan(0.0),
        exact_share=(pl.col("n_exact") / pl.col("n_caching")).fill_nan(0.0),
    ).drop("n_exact")


def cache_report(store: Store, options: ModelOptions = AS_DOCUMENTED) -> pl.DataFrame:
    """CACHE_REPORT of everybody: what the store has, or simulated now with other options."""
    if options == AS_DOCUMENTED:
        return store.read(CACHE_REPORT, store.partitions(CACHE_REPORT.name))
    return simulate(store, store.partitions(CONVERSATIONS.name), options).report


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


def recovered_conversations(store: Store) -> pl.DataFrame:
    """How many conversations of each user have their structure from content: user_id, n_conversations."""
    known = traced(conversations(store)).filter(structure="content")
    return known.group_by("user_id").agg(n_conversations=pl.len()).sort("user_id")


def users_without_conversations(store: Store) -> list[str]:
    """Users whose transcripts name none of their requests, or who have no transcripts."""
    known = store.read(CONVERSATIONS, store.partitions(CONVERSATIONS.name))
    with_traces = set(traced(known)["user_id"])
    return [user for user in store.partitions(CONVERSATIONS.name) if user not in with_traces]


def _summary(store: Store) -> pl.DataFrame:
    return store.read(VALIDATION_SUMMARY, [FLEET])
