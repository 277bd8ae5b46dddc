"""One row per request: what was sent, simulated, predicted and billed, when, and why less was read than could be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.core.causes import Cause
from kv_pipeline.reports.ratios import share
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATIONS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.steps.conversations import user_requests
from kv_pipeline.store import Store

MAIN: Final = "main"
DEFAULT_LIFETIME: Final = "5m"
_REQUEST: Final = ["conversation_id", "request_index"]
_AGENT: Final = ["conversation_id", "agent_id"]
_SHORT_ID: Final = 6
_EXPLAINED: Final = (
    "predicted_read_tokens", "predicted_write_5m_tokens", "predicted_write_1h_tokens", "predicted_input_tokens",
    "uses_caching", "n_breakpoints", "new_tokens", "lost_tokens", "cause", "divergence", "divergence_section",
    "divergence_index", "gap_s", "has_billing_churn", "recorded_miss_reason", "recorded_missed_tokens",
)  # fmt: skip


class Conversation(NamedTuple):
    """What the store says of one conversation.

    Attributes:
        key: Its id, user and session.
        lifetime: The lifetime that its markers ask for, which the simulation beside the bill uses.
        requests: As `request_rows` gives, in order.
        blocks: Its TOKENIZED_BLOCKS, in order.
        is_explained: Whether the API model and the attribution have been computed for it.
    """

    key: str
    lifetime: str
    requests: pl.DataFrame
    blocks: pl.DataFrame
    is_explained: bool


def conversations_of(store: Store, user_id: str, keys: Sequence[str]) -> Iterator[Conversation]:
    """The user's conversations with these keys, in that order; the user's tables are read once."""
    known = store.read(CONVERSATIONS, [user_id])
    lifetimes = dict(known.select("conversation_id", pl.col("marked_lifetime").fill_null(DEFAULT_LIFETIME)).iter_rows())
    explained = store.read(CACHE_REPORT, [user_id])
    blocks = store.read(TOKENIZED_BLOCKS, keys)
    rows = request_rows(
        store.read(TRACES, keys),
        user_requests(store, user_id, keys),
        _headline_hits(store.read(VALIDATION_REPORT, keys), lifetimes),
        explained,
        store.read(AGENTS, [user_id]),
    )
    by_key = rows.partition_by("conversation_id", as_dict=True, maintain_order=True)
    blocks_by_key = blocks.partition_by("conversation_id", as_dict=True, maintain_order=True)
    are_explained = set(explained["conversation_id"])
    for key in keys:
        if (key,) in by_key:
            yield Conversation(
                key, lifetimes.get(key, DEFAULT_LIFETIME), by_key[key,], blocks_by_key[key,], key in are_explained
            )


def request_rows(
    traces: pl.DataFrame, billed: pl.DataFrame, hits: pl.DataFrame, explained: pl.DataFrame, agents: pl.DataFrame
) -> pl.DataFrame:
    """One row per request in order.

    Args:
        traces: TRACES.
        billed: Per request the usage of the billed row and its breakpoints' section tokens, as `user_requests` gives.
        hits: Per request `hit_tokens` and `hit_blocks` of the blocks model.
        explained: CACHE_REPORT; requests that it lacks have nulls in its columns.
        agents: AGENTS.

    Returns:
        Times (`t_s`, `api_time_s`, `ttft_s`, `think_time_s`), counted tokens, billed tokens by kind, tokens predicted
        by both models, their hit rates, growth against the agent's request before, and the attribution.
    """
    usage = billed.select(
        *_REQUEST,
        billed_input_tokens="input_tokens",
        billed_read_tokens="cache_read_tokens",
        billed_write_5m_tokens="cache_write_5m_tokens",
        billed_write_1h_tokens="cache_write_1h_tokens",
    )
    return (
        traces.join(usage, on=_REQUEST, how="left", maintain_order="left")
        .join(hits, on=_REQUEST, how="left", maintain_order="left")
        .join(explained.select(*_REQUEST, *_EXPLAINED), on=_REQUEST, how="left", maintain_order="left")
        .join(_labels(agents), on=_AGENT, how="left", maintain_order="left")
        .rename({"input_tokens": "prompt_tokens"})
        .with_columns(
            pl.col("agent").fill_null(pl.col("agent_id")),
            billed_prompt_tokens=pl.sum_horizontal(_kinds("billed"), ignore_nulls=False),
            predicted_prompt_tokens=pl.sum_horizontal(_kinds("predicted"), ignore_nulls=False),
            growth_tokens=_growth_tokens(),
        )
        .with_columns(
            simulated_hit_rate=share("hit_tokens", "prompt_tokens"),
            billed_hit_rate=share("billed_read_tokens", "billed_prompt_tokens"),
            predicted_hit_rate=share("predicted_read_tokens", "predicted_prompt_tokens"),
            is_exact=pl.col("predicted_read_tokens") == pl.col("billed_read_tokens"),
        )
    )


def lost(requests: pl.DataFrame) -> pl.DataFrame:
    """Requests that lost tokens to a cause."""
    return requests.filter(pl.col("lost_tokens") > 0, pl.col("cause") != Cause.NEW_CONTENT.value)


def _kinds(side: str) -> list[str]:
    return [f"{side}_{kind}_tokens" for kind in ("input", "read", "write_5m", "write_1h")]


def _growth_tokens() -> pl.Expr:
    """Prompt tokens more than in the agent's request before; the whole prompt of its first."""
    prompt = pl.col("prompt_tokens").cast(pl.Int64)
    return prompt - prompt.shift(1).over(_AGENT).fill_null(0)


def _headline_hits(report: pl.DataFrame, lifetimes: dict[str, str]) -> pl.DataFrame:
    marked = pl.col("conversation_id").replace_strict(lifetimes, default=DEFAULT_LIFETIME, return_dtype=pl.String)
    is_headline = (pl.col("scope") == "conversation") & (pl.col("lifetime") == marked)
    return report.filter(is_headline).select(*_REQUEST, "hit_blocks", "hit_tokens")


def _labels(agents: pl.DataFrame) -> pl.DataFrame:
    """Names of agents for people: `main`, or type and the beginning of the id."""
    kind = pl.col("subagent_type").fill_null("unlinked")
    name = pl.format("{} {}", kind, pl.col("agent_id").str.slice(0, _SHORT_ID))
    return agents.select(
        *_AGENT,
        agent=pl.when(pl.col("agent_id") == MAIN).then(pl.lit(MAIN)).otherwise(name),
        subagent_type=pl.when(pl.col("agent_id") == MAIN).then(pl.lit(MAIN)).otherwise(kind),
    )
