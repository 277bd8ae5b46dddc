"""Conversations that no transcript records, recovered from what their requests say.

A conversation is a session, or a recording if its requests name none. Its agents are lanes (`core.lanes`):

* A lane of one request with at most one message and no tools is no agent but a side request: quota probes, titles,
  topic checks.
* The lane that takes the longest from first to last request, of those with tools if any has some, is the main thread:
  agents end before those who wait for them. Lanes with its model and tools that lie wholly before or after it are more
  of it: its context was compacted, or the user went back.
* All other lanes are agents below the main thread, numbered as they begin; what started them is not known.

On traffic of newer clients (three sessions, 137 requests, four sub-agents, a compaction) this gives what the
transcripts say. Older clients rewrite a conversation's first message right after the first request, which then is an
agent of its own, unless it is the main thread's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from kv_pipeline.core.lanes import find_lanes
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.transcripts import TRANSCRIPT_AGENTS, TRANSCRIPT_ANSWERS

MAIN_AGENT: Final = "main"
_ORDER: Final = ("requested_at_utc", "n_messages", "database_id", "row_id")
_KIND: Final = ("session_id", "model", "tools_id", "system_id")
_AGENT: Final = ("session_id", "agent_id")


class Recovered(NamedTuple):
    """What transcripts would say: frames of `TRANSCRIPT_ANSWERS` and `TRANSCRIPT_AGENTS`."""

    answers: pl.DataFrame
    agents: pl.DataFrame


def recover(requests: pl.DataFrame) -> Recovered:
    """Agents of each session, and whose answer each message is.

    Args:
        requests: One row per answered request, in any order: session_id, database_id, row_id, requested_at_utc, model,
            message_id, tools_id and system_id (u64, null without), message_ids (list of u64, the same for the same
            content).
    """
    rows = requests.with_columns(n_messages=pl.col("message_ids").list.len()).sort(_ORDER)
    lanes = find_lanes(rows.select(_KIND).rows(), _arrays(rows["message_ids"]))
    placed = (
        rows.with_columns(lane=pl.Series(lanes, dtype=pl.Int64))
        .drop_nulls("lane")
        .filter(~_is_side_request())
        .pipe(lambda frame: frame.join(_agents_of_lanes(frame), on="lane"))
        .sort(_ORDER)
    )
    return Recovered(_answers(placed), _agents(placed))


def _arrays(ids: pl.Series) -> list[np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    flat = ids.list.explode(empty_as_null=False).to_numpy().astype(np.uint64, copy=False)
    return np.split(flat, np.cumsum(ids.list.len().to_numpy())[:-1]) if len(ids) else []


def _is_side_request() -> pl.Expr:
    return (pl.len().over("lane") == 1) & (pl.col("n_messages") <= 1) & pl.col("tools_id").is_null()


class _Lane(NamedTuple):
    """A lane as far as threads need it; places in time order of its first and last request."""

    lane: int
    kind: tuple[str, int | None]
    first: int
    last: int
    duration: timedelta
    n_requests: int

    @property
    def size(self) -> tuple[bool, timedelta, int]:
        """The main thread's is the largest."""
        return self.kind[1] is not None, self.duration, self.n_requests


def _agents_of_lanes(rows: pl.DataFrame) -> pl.DataFrame:
    """Frame of lane and agent_id."""
    time, place = pl.col("requested_at_utc"), pl.col("place")
    lanes = rows.with_row_index("place").group_by("lane", maintain_order=True).agg(
        pl.col("session_id", "model", "tools_id").first(),
        first=place.min(), last=place.max(), duration=time.max() - time.min(), n_requests=pl.len(),
    )  # fmt: skip
    named: list[tuple[int, str]] = []
    for _, session in lanes.group_by("session_id", maintain_order=True):
        columns = session.select("lane", pl.struct("model", "tools_id"), "first", "last", "duration", "n_requests")
        named += _named([_Lane(lane, (kind["model"], kind["tools_id"]), *rest) for lane, kind, *rest in columns.rows()])
    return pl.DataFrame(named, schema={"lane": pl.Int64, "agent_id": pl.String}, orient="row")


def _named(lanes: Sequence[_Lane]) -> list[tuple[int, str]]:
    """Agent of each lane of a session; lanes in the order they began."""
    main = _main_thread(lanes)
    others = [lane.lane for lane in lanes if lane.lane not in main]
    return [(lane, MAIN_AGENT) for lane in main] + [(lane, f"agent-{n}") for n, lane in enumerate(others, start=1)]


def _main_thread(lanes: Sequence[_Lane]) -> set[int]:
    longest = max(lanes, key=lambda lane: lane.size)
    same = [lane for lane in lanes if lane.kind == longest.kind and lane.kind[1] is not None]
    thread, start, end = {longest.lane}, longest.first, longest.last
    for lane in same:
        if lane.first > end:
            thread.add(lane.lane)
            end = lane.last
    for lane in sorted(same, key=lambda lane: lane.last, reverse=True):
        if lane.last < start:
            thread.add(lane.lane)
            start = lane.first
    return thread


def _answers(placed: pl.DataFrame) -> pl.DataFrame:
    return (
        placed.unique([*_AGENT, "message_id"], keep="first", maintain_order=True)
        .with_columns(
            line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(_AGENT),
            answered_at=pl.col("requested_at_utc").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
            cache_miss_reason=pl.lit(None, pl.String),  # the recording itself says it, in raw_requests
            cache_missed_input_tokens=pl.lit(None, pl.Int64),
        )
        .select(polars_schema(TRANSCRIPT_ANSWERS).names())
    )


def _agents(placed: pl.DataFrame) -> pl.DataFrame:
    is_main = pl.col("agent_id") == MAIN_AGENT
    known = {
        "parent_agent_id": pl.when(is_main).then(None).otherwise(pl.lit(MAIN_AGENT)),
        "link": pl.when(is_main).then(pl.lit("main")).otherwise(pl.lit("none")),
        "is_fork": pl.lit(value=False),
        "depth": pl.when(is_main).then(0).otherwise(1),
    }
    schema = polars_schema(TRANSCRIPT_AGENTS)
    unknown = {name: pl.lit(None) for name in schema.names() if name not in known and name not in _AGENT}
    columns = [pl.col(name).cast(dtype) for name, dtype in schema.items()]
    return placed.select(_AGENT).unique(maintain_order=True).with_columns(**known, **unknown).select(columns)
