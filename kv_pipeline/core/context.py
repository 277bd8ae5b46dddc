"""How full an agent's context is, and how it grows.

A prompt's length is `prompt_tokens`, in the API's tokens as far as they are known (`with_prompt_tokens`). The share of
a context window is that of the prompt, before the answer is added. It can exceed 1 where a client asked for a long
context by a header, which is not recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Final

import polars as pl

from kv_pipeline.core.model_facts import facts_of

AGENT: Final = ("conversation_id", "agent_id")
THRESHOLDS_PERCENT: Final = (75, 78, 80, 90)
"""Fill levels at which clients warn or compact by themselves."""

_ORDER: Final = (*AGENT, "agent_request_index")


def with_prompt_tokens(requests: pl.DataFrame) -> pl.DataFrame:
    """Requests with the length of their prompts in the API's tokens.

    Args:
        requests: One row a request: conversation_id, agent_id, counted_tokens (of the whole prompt), and the billed
            input_tokens, cache_read_tokens, cache_write_5m_tokens and cache_write_1h_tokens, null without usage.

    Returns:
        The same rows in the same order with prompt_tokens: billed, or if a request has no usage, counted and scaled
        like the agent's requests that have one (not scaled if none has), so that growth within an agent is not an
        artefact of two tokenizers.
    """
    billed = pl.sum_horizontal(
        "input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", ignore_nulls=False
    ).cast(pl.Int64)
    counted = pl.col("counted_tokens").cast(pl.Int64)
    counted_of_billed = pl.when(billed.is_not_null()).then(counted).sum().over(AGENT)
    scale = pl.when(counted_of_billed > 0).then(billed.sum().over(AGENT) / counted_of_billed).otherwise(1.0)
    return requests.with_columns(prompt_tokens=pl.coalesce(billed, (counted * scale).round().cast(pl.Int64)))


def context_growth(requests: pl.DataFrame) -> pl.DataFrame:
    """Requests with their place in the model's context window.

    Args:
        requests: One row a request: conversation_id, agent_id, agent_request_index, model, requested_at_utc,
            prompt_tokens.

    Returns:
        The same rows sorted by agent, with growth_tokens (more than the agent's request before, negative after a
        compaction, null for its first), context_window_tokens of the model on that day and context_share
        (prompt / window), both null for a model without facts.
    """
    prompt = pl.col("prompt_tokens").cast(pl.Int64)
    return (
        _with_windows(requests)
        .sort(_ORDER)
        .with_columns(
            growth_tokens=prompt - prompt.shift(1).over(AGENT),
            context_share=prompt / pl.col("context_window_tokens"),
        )
    )


def _with_windows(requests: pl.DataFrame) -> pl.DataFrame:
    day = pl.col("requested_at_utc").dt.date()
    known = requests.select("model", _day=day).unique()
    windows = pl.Series([_window_tokens(model, on) for model, on in known.iter_rows()], dtype=pl.Int64)
    return (
        requests.with_columns(_day=day)
        .join(known.with_columns(context_window_tokens=windows), on=["model", "_day"], how="left", nulls_equal=True)
        .drop("_day")
    )


def _window_tokens(model: str | None, on: date) -> int | None:
    facts = None if model is None else facts_of(model, on)
    return facts.context_window_tokens if facts else None


def window_crossings(growth: pl.DataFrame, thresholds_percent: Sequence[int] = THRESHOLDS_PERCENT) -> pl.DataFrame:
    """Where agents' contexts rose to a fill level; again if it fell below in between.

    Args:
        growth: As `context_growth` gives.
        thresholds_percent: Fill levels in percent of the window.

    Returns:
        One row per (request, level reached that the agent's request before was below): conversation_id, agent_id,
        agent_request_index, threshold_percent, prompt_tokens, context_share.
    """
    tokens = pl.col("prompt_tokens").cast(pl.Int64) * 100
    is_over = tokens >= pl.col("context_window_tokens") * pl.col("threshold_percent")
    levels = pl.DataFrame({"threshold_percent": pl.Series(thresholds_percent, dtype=pl.Int32)})
    return (
        growth.drop_nulls("context_window_tokens")
        .join(levels, how="cross")
        .sort(*_ORDER, "threshold_percent")
        .with_columns(_is_over=is_over)
        .filter(pl.col("_is_over"), ~pl.col("_is_over").shift(1, fill_value=False).over(*AGENT, "threshold_percent"))
        .select(*_ORDER, "threshold_percent", "prompt_tokens", "context_share")
    )


def turn_growth(requests: pl.DataFrame) -> pl.DataFrame:
    """What each turn added to its agent's context.

    Args:
        requests: As for `context_growth`, with turn_index.

    Returns:
        One row per turn of an agent, in order: conversation_id, agent_id, turn_index, n_requests, prompt_tokens (of its
        last request) and growth_tokens (more than the last of the turn before; all of it in the first turn).
    """
    prompt = pl.col("prompt_tokens").cast(pl.Int64)
    return (
        requests.sort(_ORDER)
        .group_by(*AGENT, "turn_index", maintain_order=True)
        .agg(n_requests=pl.len().cast(pl.UInt32), prompt_tokens=prompt.last())
        .with_columns(
            growth_tokens=pl.col("prompt_tokens") - pl.col("prompt_tokens").shift(1, fill_value=0).over(AGENT)
        )
    )
