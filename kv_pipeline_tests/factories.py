"""Tiny frames, landing folders and stores for tests; every argument has a default that a test may ignore."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from kv_pipeline.landing import discover
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.sources.transcripts.frames import AGENTS_SCHEMA, ANSWERS_SCHEMA, COMPACTIONS_SCHEMA
from kv_pipeline.steps import conversations, databases, fleet, index, plan
from kv_pipeline.store import Store

START = datetime(2026, 3, 2, 8, tzinfo=UTC)
SALT = bytes(range(32))


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


# --- Frames -----------------------------------------------------------------------------------------------------------


def raw_request(row_id: int, at_s: float = 0, **columns: Any) -> dict[str, Any]:
    """A row of RAW_REQUESTS: an answered streaming request, alone with its content, of one message."""
    defaults: dict[str, Any] = {
        "database_id": "ada/db", "row_id": row_id, "request_id": f"r{row_id}", "requested_at_utc": at(at_s),
        "endpoint": "/v1/messages", "model": "m", "routed_model": None, "is_streaming": True, "status_code": 200,
        "outcome": "ok", "message_id": f"msg{row_id}", "stop_reason": "end_turn", "output_types": ["text"],
        "answer_tools": [], "input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 0, "cache_write_5m_tokens": 0,
        "cache_write_1h_tokens": 0, "api_time_s": 1.0, "ttft_s": 0.5, "completed_at_utc": at(at_s + 1),
        "tools_segment": 0, "system_segment": 1, "message_segments": [2], "breakpoints": [], "payload_bytes": 100,
        "content_id": row_id, "billing_header_id": None, "tool_choice_id": None, "thinking_id": None,
        "speed_id": None, "context_management_id": None, "cache_miss_reason": None, "cache_missed_input_tokens": None,
        "has_applied_edits": False, "recorded_by": "claude_code_proxy", "session_id": None, "named_agent_id": None,
        "row_digest": row_id,
    }  # fmt: skip
    assert columns.keys() <= defaults.keys()
    return defaults | columns


def raw_requests(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=polars_schema(RAW_REQUESTS))


def answers(*rows: tuple[str, str, int, str, float]) -> pl.DataFrame:
    """Rows of (session, agent, line, message id, seconds)."""
    timed = [(*row[:4], at(row[4]).isoformat(), None, None) for row in rows]
    return pl.DataFrame(timed, schema=ANSWERS_SCHEMA, orient="row")


def agents(*rows: dict[str, Any]) -> pl.DataFrame:
    defaults = dict.fromkeys(AGENTS_SCHEMA) | {"agent_id": "main", "link": "main", "is_fork": False, "depth": 0}
    return pl.DataFrame([defaults | row for row in rows], schema=AGENTS_SCHEMA)


def compactions(*rows: tuple[str, str, int]) -> pl.DataFrame:
    """Rows of (session, agent, line)."""
    return pl.DataFrame([(*row, "", "manual", 9, 3) for row in rows], schema=COMPACTIONS_SCHEMA, orient="row")


# --- Landing folders --------------------------------------------------------------------------------------------------

_COLUMNS = ("id", "timestamp", "endpoint", "model", "body", "response")


def user_message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def assistant_message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def recorded(message_id: str, at_s: float = 0, **changes: Any) -> tuple[Any, ...]:
    """A row of a proxy database.

    Args:
        message_id: Of the answer.
        at_s: Time of the request.
        changes: `model`, `tools`, `system`, `messages`, `stream` of the body; `stop`, `status`, `usage`,
            `response_ms`, `output` (content types) of the answer.
    """
    body = {"model": "m", "tools": [{"name": "Read"}], "system": "Be brief.", "messages": [user_message("Hello.")]}
    body = {**body, "stream": False, **{k: v for k, v in changes.items() if k in (*body, "stream")}}
    usage = {"input_tokens": 10, "output_tokens": 5, **changes.get("usage", {})}
    status = changes.get("status", 200)
    answer = {
        "id": message_id,
        "stop_reason": changes.get("stop", "end_turn"),
        "content": [{"type": kind} for kind in changes.get("output", ["text"])],
        "usage": usage,
    }
    response_ms = changes.get("response_ms", 1000)
    response = {
        "statusCode": status,
        "headers": {"Server-Timing": [f"x-originResponse;dur={response_ms / 2}"]},
        "body": answer if status == 200 else {"type": "error"},
        "responseTime": response_ms,
        "completedAt": at(at_s + response_ms / 1000).isoformat(),
    }
    time = at(at_s).isoformat()
    return f"r-{message_id}", time, "/v1/messages", body["model"], json.dumps(body), json.dumps(response)


def write_database(path: Path, rows: Iterable[tuple[Any, ...]]) -> Path:
    """Make a database, or append to one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS requests ({', '.join(_COLUMNS)})")
        connection.executemany(f"INSERT INTO requests VALUES ({', '.join('?' * len(_COLUMNS))})", rows)
    return path


def write_transcript(
    folder: Path, session: str, messages: Sequence[tuple[str, float]], agent: str | None = None, **meta: Any
) -> Path:
    """Write the transcript of a session or, with `agent`, of one of its sub-agents and its meta file."""
    name = session if agent is None else f"agent-{agent}"
    path = folder / "projects" / "p" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(answer_record(session, *message)) + "\n" for message in messages))
    if meta:
        path.with_name(f"{name}.meta.json").write_text(json.dumps(meta))
    return path


def answer_record(session: str, message_id: str, at_s: float) -> dict[str, Any]:
    message = {"id": message_id, "role": "assistant", "model": "m", "content": [{"type": "text", "text": "Done."}]}
    return {"type": "assistant", "sessionId": session, "timestamp": at(at_s).isoformat(), "message": message}


def growing_turns(prefix: str, n_turns: int, at_s: float = 0, **changes: Any) -> list[tuple[Any, ...]]:
    """Rows of a conversation that grows by two messages a turn, one turn a minute."""
    messages: list[Any] = []
    rows = []
    for number in range(n_turns):
        messages = [*messages, user_message(f"{prefix} asks, for the {number}th time, about the same old harbour.")]
        rows.append(recorded(f"{prefix}-{number}", at_s + 60 * number, messages=messages, **changes))
        messages = [*messages, assistant_message(f"Answer {number}: the harbour is where it was.")]
    return rows


# --- Stores -----------------------------------------------------------------------------------------------------------


def bring_up_to_date(store: Store, inbox: Path) -> dict[str, list[str]]:
    """What a run does, without Dagster; returns the keys that each kind of step worked on."""
    landing = discover(inbox)
    new = plan.stale_databases(store, landing)
    for key in new:
        databases.ingest_database(store, landing.databases[key])
        databases.index_database(store, key)
    users = plan.stale_users(store, landing)
    for user in users:
        index.index_user(store, user, plan.transcripts_of(landing, user))
    if obsolete := plan.obsolete_conversations(store):
        plan.remove_conversations(store, obsolete)
    changed = plan.stale_conversations(store)
    conversations.tokenize_conversations(store, changed)
    conversations.trace_conversations(store, changed)
    conversations.validate_conversations(store, changed)
    if plan.is_roll_up_stale(store):
        fleet.roll_up(store)
    return {"databases": new, "users": users, "conversations": changed}


def open_store(root: Path, monkeypatch: Any, **settings: Any) -> Store:
    """A store whose salt is the same in every test, so that hashes can be compared."""
    monkeypatch.setenv("KV_PIPELINE_SALT", "tests")
    return Store.open(root, **settings)
