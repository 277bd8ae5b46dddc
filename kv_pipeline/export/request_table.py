"""Parquet with a row a request, for people who bring their own tools."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.export.numbering import Numbering
from kv_pipeline.export.options import ExportOptions
from kv_pipeline.export.pieces import MAIN_AGENT
from kv_pipeline.export.placed import PlacedTrace, placed_requests
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.exports import EXPORTED_REQUESTS

_AGENT_SCHEMA: Final = {
    "agent_id": pl.String, "parent_agent_id": pl.String, "subagent_type": pl.String, "agent_status": pl.String,
}  # fmt: skip


def request_rows(trace: PlacedTrace, numbering: Numbering, options: ExportOptions) -> pl.DataFrame:
    """Frame of EXPORTED_REQUESTS of one trace."""
    piece = trace.piece
    hash_ids: list[list[int]] = []
    tails: list[int | None] = []
    for request in placed_requests(trace, 0.0):
        numbers = request.all_numbers(numbering)
        n_full = request.row["input_tokens"] // piece.block_size
        hash_ids.append(numbers[:n_full])
        tails.append(numbers[n_full] if len(numbers) > n_full else None)
    names = trace.agent_names
    time = pl.col("requested_at_utc") if options.absolute_timestamps else pl.lit(None, pl.Datetime("us", "UTC"))
    return (
        piece.requests.join(_agents(trace), on="agent_id", how="left", maintain_order="left")
        .with_columns(
            pl.col("agent_id").replace(names),
            pl.col("parent_agent_id").replace(names),
            trace_id=pl.lit(trace.trace_id),
            request_index=pl.int_range(pl.len(), dtype=pl.UInt32),
            requested_at_utc=time,
            block_size=pl.lit(piece.block_size, pl.UInt32),
            hash_ids=pl.Series(hash_ids, dtype=pl.List(pl.UInt64)),
            tail_id=pl.Series(tails, dtype=pl.UInt64),
        )
        .select(polars_schema(EXPORTED_REQUESTS).names())
    )


def _agents(trace: PlacedTrace) -> pl.DataFrame:
    """Agents that made requests; a parent that made none, or whose name may not be told, is not told."""
    present = trace.agent_names
    rows = [
        (
            agent["agent_id"],
            agent["parent_agent_id"] if agent["parent_agent_id"] in present else None,
            None if agent["agent_id"] == MAIN_AGENT else agent["subagent_type"],
            agent["status"],
        )
        for agent in trace.piece.agents
        if agent["agent_id"] in present
    ]
    return pl.DataFrame(rows, schema=_AGENT_SCHEMA, orient="row")
