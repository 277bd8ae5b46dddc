"""Trace rows: each request's place in time, its sizes, and what was new in it."""

from __future__ import annotations

import polars as pl

from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.schemas.columns import polars_schema

_AGENT = ["conversation_id", "agent_id"]


def with_resets(requests: pl.DataFrame) -> pl.DataFrame:
    """Add `is_reset`: under half of the blocks of the agent's previous request were kept.

    Args:
        requests: One row per request with `n_blocks` and `agent_shared_blocks`, in order within each agent.
    """
    previous_blocks = pl.col("n_blocks").shift(1).over(_AGENT)
    return requests.with_columns(is_reset=(pl.col("agent_shared_blocks") * 2 < previous_blocks).fill_null(value=False))


def trace_rows(requests: pl.DataFrame) -> pl.DataFrame:
    """Frame of `TRACES`.

    Args:
        requests: One row per request of whole conversations in order, with the columns of CONVERSATION_REQUESTS and
            TOKENIZED_BLOCKS, of the billed row (`is_streaming`, `api_time_s`, `ttft_s`, `exactness`) and of the row
            that answered (`output_tokens`, `output_types`, `stop_reason`, `completed_at_utc`), `is_reset`, and for
            resets `message_types`, the content types present in its messages.
    """
    start = pl.col("requested_at_utc").min().over("conversation_id")
    return requests.with_columns(
        t_s=_seconds(pl.col("requested_at_utc") - start),
        type=pl.when("is_streaming").then(pl.lit("s")).otherwise(pl.lit("n")),
        input_tokens=pl.col("tools_tokens") + pl.col("system_tokens") + pl.col("messages_tokens"),
        output_tokens=pl.col("output_tokens").fill_null(0),
        input_types=_input_types(),
        stop_reason=pl.col("stop_reason").fill_null(""),
        ttft_s=pl.when("is_streaming").then("ttft_s"),
        think_time_s=_think_time_s(),
    ).select(polars_schema(TRACES).names())


def _input_types() -> pl.Expr:
    previous_stop = pl.col("stop_reason").shift(1).over(_AGENT)
    is_first = pl.col("agent_request_index") == 0
    answers_tool = ~is_first & (previous_stop == "tool_use").fill_null(value=False)
    return (
        pl.when(pl.col("is_reset") & pl.col("message_types").is_not_null())
        .then("message_types")
        .when(answers_tool)
        .then(pl.lit(["tool_result"]))
        .otherwise(pl.lit(["text"]))
    )


def _think_time_s() -> pl.Expr:
    """From the agent's answer before to the request; an answer without a completion time counts from its duration."""
    measured = pl.col("requested_at_utc") + pl.duration(microseconds=(pl.col("api_time_s") * 1e6).round())
    completed = pl.coalesce("completed_at_utc", measured, "requested_at_utc")
    gap = _seconds(pl.col("requested_at_utc") - completed.shift(1).over(_AGENT))
    return gap.clip(lower_bound=0.0).fill_null(0.0)


def _seconds(duration: pl.Expr) -> pl.Expr:
    return duration.dt.total_microseconds() / 1e6
