"""Structure of logged requests that no transcript names."""

from __future__ import annotations

import polars as pl

from kv_pipeline.core.conversations import ROW
from kv_pipeline.core.recovered import Recovered, recover
from kv_pipeline.names import safe_name
from kv_pipeline.schemas.requests import CLAUDE_TRACE
from kv_pipeline.sources.transcripts.frames import TranscriptFrames
from kv_pipeline.steps.segments import segment_ids
from kv_pipeline.store import Store


def recovered_structure(store: Store, requests: pl.DataFrame, transcribed: TranscriptFrames) -> Recovered:
    """Conversations in a user's claude-trace logs, less those that transcripts name an answer or the session of.

    Args:
        store: The store.
        requests: `RAW_REQUESTS` of all the user's recordings.
        transcribed: What the user's transcripts say.
    """
    logged = requests.filter(recorded_by=CLAUDE_TRACE, outcome="ok").drop_nulls("message_id")
    named = pl.col("message_id").is_in(transcribed.answers["message_id"].implode()) | pl.col("session_id").is_in(
        transcribed.agents["session_id"].implode()
    )
    unnamed = logged.pipe(_with_session).filter(~named.any().over("session_id"))
    return recover(_with_ids(store, unnamed))


def _with_session(requests: pl.DataFrame) -> pl.DataFrame:
    """The session that a request names as a path part; else the recording's name, which keeps its suffix."""
    names = {name: safe_name(name) for name in requests["session_id"].drop_nulls().unique()}
    recording = pl.col("database_id").str.splitn("/", 2).struct.field("field_1").str.replace_all("/", "+", literal=True)
    named = pl.col("session_id").replace_strict(names, return_dtype=pl.String, default=None)
    return requests.with_columns(session_id=pl.coalesce(named, recording))


def _with_ids(store: Store, requests: pl.DataFrame) -> pl.DataFrame:
    """The requests with ids of their segments that are the same in all recordings, as `recover` takes them."""
    nothing = pl.Series(dtype=pl.UInt64)
    parts = [_identified(requests.clear(), nothing)]
    for (database_id,), rows in requests.group_by("database_id", maintain_order=True):
        parts.append(_identified(rows, segment_ids(store, str(database_id))))
    return pl.concat(parts)


def _identified(requests: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    id_of = pl.lit(ids)
    return requests.select(
        "session_id", *ROW, "requested_at_utc", "model", "message_id",
        tools_id=id_of.gather(pl.col("tools_segment")),
        system_id=id_of.gather(pl.col("system_segment")),
        message_ids=pl.col("message_segments").list.eval(id_of.gather(pl.element())),
    )  # fmt: skip
