"""The page of one conversation."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.core.reuse import Reuse
from kv_pipeline.reports.figures import curves, fleet, timeline
from kv_pipeline.reports.figures import requests as figures
from kv_pipeline.reports.figures.figure import Figure
from kv_pipeline.reports.frames.curves import curve_frames, working_set_frame
from kv_pipeline.reports.frames.money import causes
from kv_pipeline.reports.frames.requests import Conversation
from kv_pipeline.reports.frames.sums import phase_frame, totals, unpriced_models
from kv_pipeline.reports.frames.timeline import block_rectangles
from kv_pipeline.reports.page.shell import Column, Page, Section, Table
from kv_pipeline.reports.texts import DEFINITION, NOT_EXPLAINED, PRIVACY, duration, money_note
from kv_pipeline.reports.tiles import tiles

LINKED: Final = (
    timeline.TIMELINE, figures.HIT_RATE, figures.CUMULATIVE, figures.CONTEXT, figures.GROWTH, figures.TIMES,
    figures.LOSSES,
)  # fmt: skip
CURVES: Final = (curves.TTL, curves.CAPACITY, curves.WORKING_SET, curves.PREFILLS)
FIGURES: Final[tuple[Figure, ...]] = (*LINKED, figures.AGENTS, fleet.CAUSES_TOKENS, fleet.CAUSES_USD, *CURVES)
"""All figures that a conversation's page can have."""

PNG_FIGURES: Final = (
    timeline.TIMELINE, figures.HIT_RATE, figures.CUMULATIVE, figures.CONTEXT, fleet.CAUSES_TOKENS, *CURVES,
    figures.AGENTS,
)  # fmt: skip

_SHOWN: Final = (
    "request_index", "agent_id", "agent", "agent_request_index", "model", "t_s", "prompt_tokens", "context_tokens",
    "growth_tokens", "context_share", "simulated_hit_rate", "predicted_hit_rate", "billed_hit_rate",
    "billed_prompt_tokens", "billed_read_tokens", "billed_write_5m_tokens", "billed_write_1h_tokens",
    "billed_input_tokens", "output_tokens", "think_time_s", "api_time_s", "ttft_s", "is_after_compaction", "cause",
    "lost_tokens", "lost_usd", "gap_s", "divergence_section", "recorded_miss_reason", "cost_usd",
)  # fmt: skip
"""Columns of the requests that a page carries."""

REQUESTS_TABLE: Final = Table(
    "requests", "Requests", "requests",
    (
        Column("request_index", "request", "int"), Column("agent", "agent"), Column("model", "model"),
        Column("t_s", "starts, s", "seconds"), Column("context_tokens", "prompt", "int"),
        Column("growth_tokens", "growth", "int"),
        Column("context_share", "of window", "percent"), Column("simulated_hit_rate", "simulated", "percent"),
        Column("predicted_hit_rate", "predicted", "percent"), Column("billed_hit_rate", "billed", "percent"),
        Column("billed_read_tokens", "read", "int"), Column("billed_write_5m_tokens", "5m write", "int"),
        Column("billed_write_1h_tokens", "1h write", "int"), Column("billed_input_tokens", "input", "int"),
        Column("output_tokens", "output", "int"), Column("cost_usd", "cost", "usd"), Column("cause", "cause of loss"),
        Column("divergence_section", "changed in"), Column("lost_tokens", "lost", "int"),
        Column("lost_usd", "lost, $", "usd"), Column("recorded_miss_reason", "API's diagnosis"),
        Column("think_time_s", "think, s", "seconds"), Column("api_time_s", "API, s", "seconds"),
    ),
    "Tokens; times in seconds. Click a heading to sort. Pointing at a row marks the request in the figures.",
)  # fmt: skip
CAUSES_TABLE: Final = Table(
    "causes", "Causes of loss", "causes",
    (
        Column("cause", "cause"), Column("description", "means", "prose"), Column("is_avoidable", "avoidable", "flag"),
        Column("n_requests", "requests", "int"), Column("lost_tokens", "lost tokens", "int"),
        Column("lost_share", "share", "percent"), Column("lost_usd", "lost dollars", "usd"),
    ),
)  # fmt: skip
TTL_TABLE: Final = Table(
    "ttl_table", "Lifetimes", "ttl_curve",
    (
        Column("lifetime", "lifetime"), Column("scope", "cache"), Column("hit_rate", "hit rate", "percent"),
        Column("hit_tokens", "hit tokens", "int"), Column("prefill_blocks", "blocks computed", "int"),
        Column("mean_resident_blocks", "held on average", "int"),
    ), is_wide=False,
)  # fmt: skip
CAPACITY_TABLE: Final = Table(
    "capacity_table", "Capacities", "capacity_curve",
    (
        Column("capacity_blocks", "blocks", "int"), Column("capacity_tokens", "tokens", "int"),
        Column("capacity_gb", "GB", "number"), Column("lru_hit_rate", "LRU", "percent"),
        Column("belady_hit_rate", "Belady", "percent"),
    ), is_wide=False,
)  # fmt: skip
AGENTS_TABLE: Final = Table(
    "agents_table", "Agents", "agents",
    (
        Column("agent", "agent"), Column("n_requests", "requests", "int"), Column("prompt_tokens", "prompt", "int"),
        Column("output_tokens", "output", "int"), Column("simulated_hit_rate", "simulated", "percent"),
        Column("billed_hit_rate", "billed", "percent"), Column("lost_tokens", "lost", "int"),
        Column("cost_usd", "cost", "usd"),
    ),
)  # fmt: skip
PHASES_TABLE: Final = Table(
    "phases", "Phases", "phases",
    (
        Column("phase", "phase"), Column("n_agents", "agents", "int"), Column("n_requests", "requests", "int"),
        Column("prompt_tokens", "prompt tokens", "int"), Column("output_tokens", "output tokens", "int"),
        Column("shared_prefix_share", "shared prefix", "percent"),
    ),
    "Shared prefix: blocks shared with the agent's request before, of all blocks.",
)  # fmt: skip
COMPACTIONS_TABLE: Final = Table(
    "compactions", "Compactions", "compactions",
    (
        Column("agent", "agent"), Column("agent_request_index", "agent's request", "int"),
        Column("tokens_before", "before", "int"), Column("tokens_after", "after", "int"),
        Column("rebuilt_tokens", "rebuilt", "int"), Column("n_later_requests", "later requests", "int"),
        Column("is_forced", "forced", "flag"), Column("carried_usd", "carrying on would cost", "usd"),
        Column("rebuild_usd", "rebuilding cost", "usd"), Column("compaction_request_usd", "summary cost", "usd"),
        Column("saved_usd", "saved", "usd"), Column("has_paid", "paid for itself", "flag"),
    ),
    "Forced: a later prompt would not have fitted the window. Saved: what carrying the dropped tokens to the end would "
    "have cost, less rebuilding the cache and writing the summary.",
)  # fmt: skip
CROSSINGS_TABLE: Final = Table(
    "crossings", "Context window", "crossings",
    (
        Column("agent", "agent"), Column("agent_request_index", "agent's request", "int"),
        Column("threshold_percent", "rose above, %", "int"), Column("prompt_tokens", "prompt tokens", "int"),
        Column("context_share", "of window", "percent"),
    ),
    "Requests whose prompt rose above 75, 78, 80 or 90 % of the model's context window.",
)  # fmt: skip
_POINTED: Final = tuple(
    column for column in REQUESTS_TABLE.columns
    if column.name in {"request_index", "agent", "model", "context_tokens", "growth_tokens", "simulated_hit_rate",
                       "predicted_hit_rate", "billed_hit_rate", "billed_read_tokens", "cause", "lost_tokens"}
)  # fmt: skip


def conversation_frames(
    conversation: Conversation, reuse: Reuse, kv_bytes_per_token: float | None
) -> dict[str, pl.DataFrame]:
    """Frames that the figures and tables of a conversation's page show.

    Args:
        conversation: Its requests as `request_rows` gives.
        reuse: Its reuse of blocks.
        kv_bytes_per_token: For capacities in GB; null without.
    """
    requests = conversation.requests
    rectangles = block_rectangles(requests)
    names = requests.select("request_index", "agent")
    names_of_agents = requests.select("agent_id", "agent").unique()
    return {
        "requests": requests.join(_section_ends(conversation), on="request_index", maintain_order="left")
        .select(*_SHOWN, "tools_end_block", "system_end_block")
        .with_columns(cause=pl.when(pl.col("lost_tokens") > 0).then(pl.col("cause").str.replace_all("_", " "))),
        "rectangles": rectangles.join(names, on="request_index", maintain_order="left"),
        "causes": causes(requests),
        "agents": totals(requests, ["agent"]),
        "phases": phase_frame(requests),
        "compactions": conversation.compactions.join(names_of_agents, on="agent_id", maintain_order="left"),
        "crossings": conversation.crossings.join(names_of_agents, on="agent_id", maintain_order="left"),
        "working_set": working_set_frame(reuse),
        **curve_frames([reuse], conversation.lifetime, kv_bytes_per_token),
    }


def _section_ends(conversation: Conversation) -> pl.DataFrame:
    """Per request the block positions, with fractions, where its tools and its system prompt end."""
    tools, system = (pl.col(f"{name}_tokens") / conversation.block_size for name in ("tools", "system"))
    return conversation.blocks.select("request_index", tools_end_block=tools, system_end_block=tools + system)


def conversation_page(
    conversation: Conversation, frames: dict[str, pl.DataFrame], home: str, capacity_note: str
) -> Page:
    """The page of one conversation.

    Args:
        conversation: The conversation.
        frames: As `conversation_frames` gives.
        home: Relative address of the fleet's page.
        capacity_note: What capacities in GB mean.
    """
    total = totals(conversation.requests).row(0, named=True)
    span_s = float(conversation.requests["t_s"].max() or 0.0)  # type: ignore[arg-type]
    models = ", ".join(conversation.requests["model"].unique().sort())
    return Page(
        title=conversation.key,
        subtitle=f"{total['n_requests']:,} requests over {duration(span_s)}. Models: {models}. "
        f"Markers ask for {conversation.lifetime}.",
        definition=DEFINITION + money_note(unpriced_models(conversation.requests)),
        tiles=tiles(total),
        sections=_sections(capacity_note, is_explained=conversation.is_explained),
        frames=frames,
        library=FIGURES,
        pointed=_POINTED,
        home=(home, "Fleet"),
        footer=PRIVACY,
    )


def _sections(capacity_note: str, *, is_explained: bool) -> tuple[Section, ...]:
    return (
        Section("Caching at a glance", (timeline.TIMELINE,)),
        Section(
            "Requests",
            LINKED[1:6],
            "Drag in a figure to zoom all of them, double-click for all requests. Click a legend's entry to single it out.",  # noqa: E501
        ),
        Section(
            "Losses",
            (figures.LOSSES, fleet.CAUSES_TOKENS, fleet.CAUSES_USD, CAUSES_TABLE),
            "" if is_explained else NOT_EXPLAINED,
        ),
        Section("Reuse", (*CURVES, TTL_TABLE, CAPACITY_TABLE), capacity_note),
        Section("Agents", (figures.AGENTS, AGENTS_TABLE, PHASES_TABLE)),
        Section("Context", (COMPACTIONS_TABLE, CROSSINGS_TABLE)),
        Section("All requests", (REQUESTS_TABLE,)),
    )
