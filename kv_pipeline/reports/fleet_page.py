"""The page of everything in the store."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import polars as pl

from kv_pipeline.reports.conversation_page import CAPACITY_TABLE, CAUSES_TABLE, CURVES, PHASES_TABLE, TTL_TABLE
from kv_pipeline.reports.figures import fleet
from kv_pipeline.reports.figures.figure import Figure
from kv_pipeline.reports.frames.sums import phase_frame, totals, unpriced_models
from kv_pipeline.reports.page.shell import Column, Page, Section, Table
from kv_pipeline.reports.ratios import share
from kv_pipeline.reports.summary import api_table, with_rates
from kv_pipeline.reports.texts import DEFINITION, NOT_EXPLAINED, PRIVACY, money_note
from kv_pipeline.reports.tiles import tiles

FIGURES: Final[tuple[Figure, ...]] = (
    fleet.CONVERSATIONS, fleet.MODELS, fleet.CAUSES_TOKENS, fleet.CAUSES_USD, fleet.WHAT_IF, *CURVES,
)  # fmt: skip
"""All figures that the fleet's page can have."""

API_MODEL: Final = "API model"

_CONVERSATIONS: Final = Table(
    "conversations", "Conversations", "conversations",
    (
        Column("conversation_id", "conversation", href="href"), Column("first_request_at_utc", "first request, UTC"),
        Column("n_requests", "requests", "int"), Column("n_agents", "agents", "int"),
        Column("prompt_tokens", "prompt tokens", "int"), Column("simulated_hit_rate", "simulated", "percent"),
        Column("predicted_hit_rate", "predicted", "percent"), Column("billed_hit_rate", "billed", "percent"),
        Column("difference_points", "difference", "points"), Column("exact_share", "exact", "percent"),
        Column("cost_usd", "cost", "usd"), Column("savings_usd", "saved", "usd"),
        Column("lost_tokens", "lost tokens", "int"), Column("lost_usd", "lost, $", "usd"),
    ),
    "Simulated: blocks model; predicted: API model; difference: simulated less billed; exact: share of requests that "
    "use caching whose read was predicted to the token.",
)  # fmt: skip
_RATES: Final = Table(
    "rates", "Predicted against billed, by model and scope", "rates",
    (
        Column("model", "model"), Column("scope", "who shares the cache"), Column("lifetime", "lifetime"),
        Column("n_requests", "requests", "int"), Column("simulated_hit_rate", "predicted", "percent"),
        Column("billed_hit_rate", "billed", "percent"), Column("difference_points", "difference", "points"),
        Column("share_within_one_block", "within one block", "percent"), Column("exact_share", "exact", "percent"),
    ),
    "API model: over billed prompt tokens; exact: of requests that use caching, share predicted to the token. Other "
    "rows: blocks model, over counted tokens; within one block: share predicted that closely.",
)  # fmt: skip
_WHAT_IF: Final = Table(
    "what_if_table", "What if", "what_if",
    (
        Column("scenario", "had requests been sent"), Column("predicted_hit_rate", "hit rate", "percent"),
        Column("cache_read_tokens", "read", "int"), Column("cache_write_5m_tokens", "5m write", "int"),
        Column("cache_write_1h_tokens", "1h write", "int"), Column("input_tokens", "input", "int"),
        Column("prompt_usd", "prompts cost", "usd"), Column("saved_usd", "saved", "usd"),
        Column("saved_share", "saved, share", "percent"),
    ),
    "Predicted by the API model for the same requests; answers are not counted.",
)  # fmt: skip


_CONTENT_REUSE: Final = Table(
    "content_reuse", "Reuse beyond prefixes", "content_reuse",
    (
        Column("conversation_id", "conversation"), Column("prompt_tokens", "prompt tokens", "int"),
        Column("prefix_share", "hit as a prefix", "percent"), Column("repeated_share", "seen elsewhere", "percent"),
        Column("new_share", "new", "percent"), Column("repeated_tokens", "seen elsewhere, tokens", "int"),
    ),
    "Of all prompt tokens with an unbounded cache: hit as a prefix; behind it, but within 64 tokens that the "
    "conversation had at another position (an upper bound for caches that reuse more than prefixes); and new.",
)  # fmt: skip


def with_shares(reuse: pl.DataFrame) -> pl.DataFrame:
    """CONTENT_REUSE with prefix_share, repeated_share and new_share, 0 of nothing."""
    return reuse.with_columns(
        prefix_share=share("prefix_hit_tokens", "prompt_tokens"),
        repeated_share=share("repeated_tokens", "prompt_tokens"),
        new_share=share("new_tokens", "prompt_tokens"),
    )


def conversation_address(key: str) -> str:
    """Address of a conversation's page, relative to the fleet's page."""
    return quote(f"conversations/{key}.html")


def fleet_frames(
    requests: pl.DataFrame, validation: pl.DataFrame, first_requests: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    """Frames of the fleet's page, but for curves, causes and what-if.

    Args:
        requests: All requests as `request_rows` gives.
        validation: VALIDATION_SUMMARY.
        first_requests: Per conversation_id and user_id its first_request_at_utc.
    """
    by_conversation = totals(requests, ["conversation_id"]).join(
        first_requests, on="conversation_id", how="left", maintain_order="left"
    )
    address = pl.col("conversation_id").map_elements(conversation_address, return_dtype=pl.String)
    by_model = totals(requests, ["model"]).sort("model")
    return {
        "conversations": by_conversation.with_columns(href=address),
        "model_rates": by_model,
        "phases": phase_frame(requests),
        "rates": pl.concat([_api_rates(requests), _block_rates(validation)], how="diagonal").sort(
            "model", "scope", "lifetime"
        ),
    }


def fleet_page(
    frames: dict[str, pl.DataFrame], requests: pl.DataFrame, capacity_note: str, *, is_explained: bool
) -> Page:
    """The page of everything.

    Args:
        frames: As `fleet_frames` gives, with those of curves, causes and what-if.
        requests: All requests as `request_rows` gives.
        capacity_note: What capacities in GB mean.
        is_explained: Whether the API model and the attribution have been computed.
    """
    total = totals(requests).row(0, named=True)
    n_conversations = frames["conversations"].height
    days = requests["requested_at_utc"].dt.strftime("%Y-%m-%d").sort().to_list()
    size = f"{n_conversations:,} conversations, {total['n_requests']:,} requests"
    return Page(
        title="Prompt cache report",
        subtitle=f"{size}, {days[0]} to {days[-1]} UTC",
        definition=DEFINITION + money_note(unpriced_models(requests)),
        tiles=tiles(total, n_conversations),
        sections=_sections(capacity_note, is_explained=is_explained),
        frames=frames,
        library=FIGURES,
        footer=PRIVACY,
    )


def _sections(capacity_note: str, *, is_explained: bool) -> tuple[Section, ...]:
    return (
        Section("Conversations", (_CONVERSATIONS, fleet.CONVERSATIONS, fleet.MODELS)),
        Section(
            "Causes of loss",
            (fleet.CAUSES_TOKENS, fleet.CAUSES_USD, CAUSES_TABLE),
            "" if is_explained else NOT_EXPLAINED,
        ),
        Section("What if", (fleet.WHAT_IF, _WHAT_IF)),
        Section("Predicted and billed", (_RATES,)),
        Section("Phases", (PHASES_TABLE,)),
        Section("Reuse", (*CURVES, TTL_TABLE, CAPACITY_TABLE, _CONTENT_REUSE), capacity_note),
    )


def _block_rates(validation: pl.DataFrame) -> pl.DataFrame:
    keys = ["model", "scope", "lifetime"]
    numbers = [name for name, dtype in validation.schema.items() if dtype.is_integer()]
    sums = validation.group_by(keys).agg(pl.col(numbers).sum())
    return with_rates(sums).select(
        *keys, pl.col("n_requests").cast(pl.Int64), "simulated_hit_rate", "billed_hit_rate", "difference_points",
        "share_within_one_block",
    )  # fmt: skip


def _api_rates(requests: pl.DataFrame) -> pl.DataFrame:
    return api_table(requests, ["model"]).select(
        "model",
        "billed_hit_rate",
        "difference_points",
        "exact_share",
        pl.col("n_requests").cast(pl.Int64),
        scope=pl.lit(API_MODEL),
        lifetime=pl.lit("as marked"),
        simulated_hit_rate="predicted_hit_rate",
    )
