"""The table that `kv-pipeline export --format parquet` writes."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.schemas.columns import UTC_TIME, at_least, column, table

_SAME: Final = (
    "t_s", "type", "model", "input_tokens", "output_tokens", "input_types", "output_types", "stop_reason",
    "api_time_s", "ttft_s", "think_time_s", "is_after_compaction", "estimated_tokens",
)  # fmt: skip

EXPORTED_REQUESTS: Final = table(
    "exported_requests",
    "One row per exported request, trace after trace, by time within each.",
    unique=["trace_id", "request_index"],
    columns={
        "trace_id": column(pl.String(), "Trace: a conversation, or the part of it between two gaps."),
        "request_index": column(pl.UInt32(), "0-based place of the request in the trace."),
        "agent_id": column(pl.String(), "Agent that made the request; `main` is the main thread."),
        "parent_agent_id": column(pl.String(), "Agent that started it; null for the main thread.", nullable=True),
        "subagent_type": column(pl.String(), "Type of the sub-agent; null for the main thread.", nullable=True),
        "agent_status": column(
            pl.String(), "`completed` or `async_launched`; null if not recorded.", nullable=True
        ),
        "turn_index": column(pl.UInt32(), "0-based turn of the agent."),
        "requested_at_utc": column(
            UTC_TIME, "Time of the request; null unless absolute times were asked for.", nullable=True
        ),
        **{name: TRACES.columns[name] for name in _SAME},
        "tools_tokens": column(pl.UInt32(), "Tokens of the tools section."),
        "system_tokens": column(pl.UInt32(), "Tokens of the system section."),
        "block_size": column(pl.UInt32(), "Tokens a block.", at_least(1)),
        "hash_ids": column(pl.List(pl.UInt64()), "Numbers of the full blocks; equal numbers are equal prefixes."),
        "tail_id": column(
            pl.UInt64(),
            "Number of the partial last block; null if there is none. Equal numbers are equal tokens.",
            nullable=True,
        ),
    },
)  # fmt: skip
