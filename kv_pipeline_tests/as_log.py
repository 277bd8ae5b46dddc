"""Recorded traffic as claude-trace would have logged it: what transcripts say of it tests what content tells."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS, UNINDEXED_REQUESTS
from kv_pipeline.store import Store

Sessions = Mapping[tuple[str, int], str]


def sessions_of(store: Store, user: str) -> Sessions:
    """Session of each recorded request that belongs to one."""
    place = ["database_id", "row_id", "conversation_id"]
    traced = store.read(CONVERSATION_REQUESTS, [user]).rename({"billed_row_id": "row_id"})
    others = store.read(UNINDEXED_REQUESTS, [user]).drop_nulls("conversation_id")
    rows = pl.concat([traced.select(place), others.select(place)]).rows()
    return {(database_id, row_id): conversation.partition("/")[2] for database_id, row_id, conversation in rows}


def write_log(path: Path, database: Path, database_id: str, sessions: Sessions) -> Path:
    """Log a database's requests line for line, so that row ids stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as connection,
        path.open("w") as log,
    ):
        rows = connection.execute("SELECT rowid, timestamp, body, response FROM requests ORDER BY rowid").fetchall()
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        for row_id, timestamp, body, response in rows:
            pair = _pair(timestamp, json.loads(body), json.loads(response or "null"))
            session = sessions.get((database_id, row_id))
            if session is not None:
                pair["request"]["body"]["metadata"] = {"user_id": f"user_1_account_2_session_{session}"}
            log.write(json.dumps(pair) + "\n")
    return path


def _pair(timestamp: str, body: dict[str, Any], response: dict[str, Any] | None) -> dict[str, Any]:
    at_s = datetime.fromisoformat(timestamp).timestamp()
    request = {"timestamp": at_s, "url": "https://api.anthropic.com/v1/messages", "body": body}
    if response is None:
        return {"request": request, "response": None}
    answer = {"timestamp": at_s + (response.get("responseTime") or 0) / 1000, "status_code": response["statusCode"]}
    chunks = response.get("streamingChunks")
    answer |= {"body_raw": "\n\n".join(chunks)} if chunks else {"body": response.get("body")}
    return {"request": request, "response": answer}


def agents_compared(transcribed: Store, logged: Store, user: str) -> pl.DataFrame:
    """How many requests of each transcribed agent each recovered agent has: session, agent, recovered, n_requests."""
    place = ["conversation_id", "database_id", "billed_row_id", "agent_id"]
    truth, found = (s.read(CONVERSATION_REQUESTS, [user]).select(place) for s in (transcribed, logged))
    return (
        truth.join(
            found.with_columns(pl.col("database_id").str.strip_suffix(".jsonl")),
            on=["conversation_id", "database_id", "billed_row_id"],
            how="left",
        )
        .group_by(session="conversation_id", agent="agent_id", recovered="agent_id_right")
        .agg(n_requests=pl.len())
        .sort(pl.all())
    )
