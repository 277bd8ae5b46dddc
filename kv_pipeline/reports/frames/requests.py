"""One row per request: what was sent, simulated, predicted and billed, when, and why less was read than could be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.core.causes import Cause
from kv_pipeline.core.compactions import compactions
from kv_pipeline.core.context import window_crossings
from kv_pipeline.core.phases import with_phases
from kv_pipeline.core.prices import PriceTable
from kv_pipeline.reports.ratios import share
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATIONS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.steps.money import priced_requests, priced_unindexed
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
        compactions: As `kv_pipeline.core.compactions` gives.
        crossings: Where contexts rose to a fill level, as `window_crossings` gives.
        block_size: Tokens a block.
        is_explained: Whether the API model and the attribution have been computed for it.
    """

    key: str
    lifetime: str
    requests: pl.DataFrame
    blocks: pl.DataFrame
    compactions: pl.DataFrame
    crossings: pl.DataFrame
    block_size: int
    is_explained: bool


def all_conversations(store: Store, keys: Sequence[str], prices: PriceTable) -> Iterator[Conversation]:
    """Conversations in order; each user's tables are read once.

    Args:
        store: The store, up to date.
        keys: Their ids, sorted.
        prices: Prices in force.
    """
    for user_id, mine in groupby(keys, key=lambda key: key.partition("/")[0]):
        yield from _conversations_of(store, user_id, list(mine), prices)


def _conversations_of(store: Store, user_id: str, keys: Sequence[str], prices: PriceTable) -> Iterator[Conversation]:
    known = store.read(CONVERSATIONS, [user_id])
    lifetimes = dict(known.select("conversation_id", pl.col("marked_lifetime").fill_null(DEFAULT_LIFETIME)).iter_rows())
    explained = store.read(CACHE_REPORT, [user_id])
    priced = priced_requests(store, user_id, prices)
    hits = _headline_hits(store.read(VALIDATION_REPORT, keys), lifetimes)
    rows = request_rows(store.read(TRACES, keys), priced, hits, explained, store.read(AGENTS, [user_id]))
    requests, blocks, compacted, crossed = (
        frame.partition_by("conversation_id", as_dict=True, maintain_order=True)
        for frame in (
            rows,
            store.read(TOKENIZED_BLOCKS, keys),
            compactions(priced, priced_unindexed(store, user_id, prices)),
            window_crossings(priced),
        )
    )
    none = (compactions(priced.clear()), window_crossings(priced.clear()))
    are_explained = set(explained["conversation_id"])
    for key in keys:
        if (key,) in requests:
            yield Conversation(
                key, lifetimes.get(key, DEFAULT_LIFETIME), requests[key,], blocks[key,],
                compacted.get((key,), none[0]), crossed.get((key,), none[1]),
                store.settings.block_size, key in are_explained,
            )  # fmt: skip


def request_rows(
    traces: pl.DataFrame, priced: pl.DataFrame, hits: pl.DataFrame, explained: pl.DataFrame, agents: pl.DataFrame
) -> pl.DataFrame:
    """One row per request in order.

    Args:
        traces: TRACES.
        priced: The same requests as `priced_requests` gives: usage, money, place in the context window, blocks.
        hits: Per request `hit_tokens` and `hit_blocks` of the blocks model.
        explained: CACHE_REPORT; requests that it lacks have nulls in its columns.
        agents: AGENTS.

    Returns:
        Times (`t_s`, `api_time_s`, `ttft_s`, `think_time_s`), counted tokens (`prompt_tokens`), the API's tokens by
        kind (`billed_…`, `predicted_…`) and in all (`context_tokens`, `growth_tokens`, `context_share`), hit rates of
        both models and of the bill, blocks, agent and phase, the attribution, and money (`cost_usd`,
        `cost_without_caching_usd`, `savings_usd`, `lost_usd`; null without a price or a bill).
    """
    usage = priced.select(
        *_REQUEST, "growth_tokens", "context_window_tokens", "context_share", "n_blocks", "agent_shared_blocks",
        "cost_usd", "cost_without_caching_usd", "savings_usd", "loss_usd_per_token",
        context_tokens="prompt_tokens",
        billed_input_tokens="input_tokens",
        billed_read_tokens="cache_read_tokens",
        billed_write_5m_tokens="cache_write_5m_tokens",
        billed_write_1h_tokens="cache_write_1h_tokens",
    )  # fmt: skip
    rows = (
        traces.join(usage, on=_REQUEST, how="left", maintain_order="left")
        .join(hits, on=_REQUEST, how="left", maintain_order="left")
        .join(explained.select(*_REQUEST, *_EXPLAINED), on=_REQUEST, how="left", maintain_order="left")
        .join(_labels(agents), on=_AGENT, how="left", maintain_order="left")
        .rename({"input_tokens": "prompt_tokens"})
        .with_columns(
            pl.col("agent").fill_null(pl.col("agent_id")),
            billed_prompt_tokens=pl.sum_horizontal(_kinds("billed"), ignore_nulls=False),
            lost_usd=pl.col("lost_tokens") * pl.col("loss_usd_per_token"),
        )
        .with_columns(
            simulated_hit_rate=share("hit_tokens", "prompt_tokens"),
            billed_hit_rate=share("billed_read_tokens", "billed_prompt_tokens"),
            predicted_hit_rate=share("predicted_read_tokens", "context_tokens"),
            is_exact=pl.col("predicted_read_tokens") == pl.col("billed_read_tokens"),
        )
        .drop("loss_usd_per_token")
    )
    return with_phases(rows, agents)


def lost(requests: pl.DataFrame) -> pl.DataFrame:
    """Requests that lost tokens to a cause."""
    return requests.filter(pl.col("lost_tokens") > 0, pl.col("cause") != Cause.NEW_CONTENT.value)


def _kinds(side: str) -> list[str]:
    return [f"{side}_{kind}_tokens" for kind in ("input", "read", "write_5m", "write_1h")]


def _headline_hits(report: pl.DataFrame, lifetimes: dict[str, str]) -> pl.DataFrame:
    marked = pl.col("conversation_id").replace_strict(lifetimes, default=DEFAULT_LIFETIME, return_dtype=pl.String)
    is_headline = (pl.col("scope") == "conversation") & (pl.col("lifetime") == marked)
    return report.filter(is_headline).select(*_REQUEST, "hit_blocks", "hit_tokens")


def _labels(agents: pl.DataFrame) -> pl.DataFrame:
    """Names of agents for people: `main`, or type and the beginning of the id."""
    kind = pl.col("subagent_type").fill_null("unlinked")
    name = pl.format("{} {}", kind, pl.col("agent_id").str.slice(0, _SHORT_ID))
    return agents.select(*_AGENT, agent=pl.when(pl.col("agent_id") == MAIN).then(pl.lit(MAIN)).otherwise(name))
