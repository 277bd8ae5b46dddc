"""Rows as `request_rows` gives them, for frames without a store."""

from __future__ import annotations

from typing import Any

import polars as pl

from kv_pipeline_tests.factories import at

_SCHEMA = {
    "conversation_id": pl.String, "request_index": pl.UInt32, "agent_id": pl.String, "agent": pl.String,
    "agent_request_index": pl.UInt32, "turn_index": pl.UInt32, "model": pl.String,
    "requested_at_utc": pl.Datetime("us", "UTC"), "t_s": pl.Float64, "prompt_tokens": pl.UInt32,
    "context_tokens": pl.Int64, "growth_tokens": pl.Int64, "context_share": pl.Float64, "n_blocks": pl.UInt32,
    "agent_shared_blocks": pl.UInt32, "hit_blocks": pl.UInt32, "hit_tokens": pl.UInt32, "output_tokens": pl.Int64,
    "simulated_hit_rate": pl.Float64, "predicted_hit_rate": pl.Float64, "billed_hit_rate": pl.Float64,
    "predicted_read_tokens": pl.Int64, "billed_prompt_tokens": pl.Int64,
    "billed_read_tokens": pl.Int64, "billed_write_5m_tokens": pl.Int64, "billed_write_1h_tokens": pl.Int64,
    "billed_input_tokens": pl.Int64, "uses_caching": pl.Boolean, "is_exact": pl.Boolean, "think_time_s": pl.Float64,
    "api_time_s": pl.Float64, "ttft_s": pl.Float64, "is_after_compaction": pl.Boolean, "cause": pl.String,
    "lost_tokens": pl.Int64, "lost_usd": pl.Float64, "gap_s": pl.Float64, "divergence_section": pl.String,
    "recorded_miss_reason": pl.String, "cost_usd": pl.Float64, "cost_without_caching_usd": pl.Float64,
    "savings_usd": pl.Float64, "phase": pl.String, "subagent_type": pl.String,
}  # fmt: skip


def request(index: int = 0, **columns: Any) -> dict[str, Any]:
    """A billed request of the main thread that read 60 of 100 tokens, as predicted, and lost nothing."""
    read = columns.get("billed_read_tokens", 60)
    billed = None if read is None else 100
    defaults: dict[str, Any] = {
        "conversation_id": "ada/s", "request_index": index, "agent_id": "main", "agent": "main",
        "agent_request_index": index, "turn_index": index, "model": "claude-opus-5-5", "requested_at_utc": at(index),
        "t_s": float(index), "prompt_tokens": 100, "context_tokens": 100, "growth_tokens": None if not index else 0,
        "context_share": 0.1, "n_blocks": 2, "agent_shared_blocks": 1, "hit_blocks": 1, "hit_tokens": 50,
        "output_tokens": 5, "simulated_hit_rate": 0.5, "predicted_hit_rate": 0.6, "billed_hit_rate": 0.6,
        "predicted_read_tokens": read, "billed_prompt_tokens": billed,
        "billed_read_tokens": read, "billed_write_5m_tokens": None if read is None else 100 - read,
        "billed_write_1h_tokens": 0, "billed_input_tokens": 0, "uses_caching": True, "is_exact": True,
        "think_time_s": 1.0, "api_time_s": 2.0, "ttft_s": 0.5, "is_after_compaction": False, "cause": "new_content",
        "lost_tokens": 0, "lost_usd": 0.0, "gap_s": None, "divergence_section": None, "recorded_miss_reason": None,
        "cost_usd": 0.25, "cost_without_caching_usd": 1.0, "savings_usd": 0.75, "phase": "main",
        "subagent_type": None,
    }  # fmt: skip
    assert columns.keys() <= defaults.keys()
    return defaults | columns


def requests(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=_SCHEMA)
