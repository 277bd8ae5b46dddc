"""Tiny proxy databases and transcripts; every test states only what it is about."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl

from kv_pipeline.demo.proxy import SCHEMA
from kv_pipeline.schemas.requests import RAW_REQUESTS, SEGMENTS
from kv_pipeline.sources.anthropic_messages.pair_reader import PairReader
from kv_pipeline.sources.anthropic_messages.rows import Recording
from kv_pipeline.sources.claude_code_proxy.reader import DatabaseReader
from kv_pipeline.store import check

SALT = b"s" * 32
LOOSE_SCHEMA = "CREATE TABLE requests (id, timestamp, method, endpoint, headers, body, response, model, routed_model);"
"""Takes anything in any column, as other proxies' tables may."""
COLUMNS = ("id", "timestamp", "endpoint", "body", "response", "model", "routed_model")
MESSAGE = {"role": "user", "content": "hello"}


def read_checked(
    reader: type[PairReader] | type[DatabaseReader], database_id: str, path: Path
) -> tuple[Recording, pl.DataFrame]:
    """What a recording holds, and its segments, both checked against their models."""
    emitted: list[pl.DataFrame] = []
    content = reader(database_id, SALT, False, emitted.append).read(path)
    segments = pl.concat(emitted) if emitted else pl.DataFrame()
    if emitted:
        check(SEGMENTS, segments)
    check(RAW_REQUESTS, content.requests)
    return content, segments


def reasons(content: Recording) -> list[tuple[int | None, str, bool]]:
    return [(skip.row, skip.reason, skip.is_left_out) for skip in content.skips]


def make_body(**changes: Any) -> str:
    return json.dumps({"model": "claude-x", "messages": [MESSAGE], "stream": True} | changes)


def make_response(message_id: str = "msg_1", **changes: Any) -> str:
    body = {"id": message_id, "stop_reason": "end_turn", "content": [{"type": "text", "text": "hi"}],
            "usage": {"input_tokens": 10, "output_tokens": 2}}  # fmt: skip
    return json.dumps({"statusCode": 200, "responseTime": 1500, "body": body} | changes)


def make_row(**changes: Any) -> dict[str, Any]:
    row = {"id": "r1", "timestamp": "2025-01-01T00:00:00Z", "endpoint": "/v1/messages", "body": make_body(),
           "response": make_response(), "model": "claude-x", "routed_model": "claude-x"}  # fmt: skip
    return row | changes


def make_database(path: Path, rows: Iterable[Mapping[str, Any]], setup: str = "", schema: str = SCHEMA) -> Path:
    """A database as the proxy makes it; `path` may be the folder for a `requests.db`."""
    path = path / "requests.db" if path.is_dir() else path
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("PRAGMA synchronous = OFF;" + setup + schema)
        connection.execute("BEGIN")
        insert_rows(connection, rows)
        connection.execute("COMMIT")
    return path


def insert_rows(connection: sqlite3.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    marks = ", ".join("?" * (len(COLUMNS) + 2))
    statement = f"INSERT INTO requests (method, headers, {', '.join(COLUMNS)}) VALUES ({marks})"
    connection.executemany(statement, [("POST", "{}", *(row[name] for name in COLUMNS)) for row in rows])


def make_rows(count: int, body_bytes: int = 0) -> list[dict[str, Any]]:
    """Rows that differ, each with a message of its own."""
    return [
        make_row(
            id=f"r{n}",
            timestamp=f"2025-01-01T00:{n // 60:02}:{n % 60:02}Z",
            body=make_body(messages=[MESSAGE, {"role": "user", "content": f"{n} " + "x" * body_bytes}]),
            response=make_response(f"msg_{n}"),
        )
        for n in range(1, count + 1)
    ]


def make_record(kind: str = "assistant", **changes: Any) -> dict[str, Any]:
    message = {"id": "msg_1", "model": "claude-x", "content": [{"type": "text", "text": "hi"}]}
    record = {"type": kind, "sessionId": "s1", "uuid": "u1", "timestamp": "2025-01-01T00:00:00.000Z",
              "isSidechain": False, "message": message}  # fmt: skip
    return record | changes


def make_transcript(path: Path, records: Iterable[Mapping[str, Any] | str | bytes]) -> Path:
    """A transcript; strings and bytes are lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(_line(record) for record in records))
    return path


def _line(record: Mapping[str, Any] | str | bytes) -> bytes:
    if isinstance(record, bytes):
        return record
    return (record if isinstance(record, str) else json.dumps(record)).encode() + b"\n"


CREDENTIAL = "sk-ant-oat01-never-to-be-stored"


def make_pair(body: Mapping[str, Any] | None = None, message_id: str = "msg_1", **changes: Any) -> dict[str, Any]:
    """A line of a claude-trace log, answered without streaming."""
    headers = {"authorization": f"Bearer {CREDENTIAL}", "x-api-key": CREDENTIAL, "content-type": "application/json"}
    request = {"timestamp": 1_748_554_704.25, "method": "POST", "url": "https://api.anthropic.com/v1/messages?beta=true",
               "headers": headers, "body": json.loads(make_body()) | dict(body or {})}  # fmt: skip
    response = {"timestamp": 1_748_554_705.5, "status_code": 200, "headers": {"request-id": f"req_{message_id}"},
                "body": json.loads(make_response(message_id))["body"]}  # fmt: skip
    pair = {"request": request, "response": response, "logged_at": "2025-05-29T23:38:25.033061"}
    for key, change in changes.items():
        pair[key] = pair[key] | change if isinstance(change, dict) else change
    return pair


def make_log(path: Path, pairs: Iterable[Mapping[str, Any] | str | bytes]) -> Path:
    """A claude-trace log; strings and bytes are lines as they are."""
    return make_transcript(path, pairs)


def make_entry(body: Mapping[str, Any] | None = None, message_id: str = "msg_1", **changes: Any) -> dict[str, Any]:
    """An entry of a HAR file, answered without streaming."""
    secrets = [{"name": name, "value": CREDENTIAL} for name in ("Authorization", "x-api-key", "Cookie")]
    sent = json.dumps(json.loads(make_body()) | dict(body or {}))
    request = {"method": "POST", "url": "https://api.anthropic.com/v1/messages?beta=true", "headers": secrets,
               "postData": {"mimeType": "application/json", "text": sent},
               "cookies": [{"name": "session", "value": CREDENTIAL}]}  # fmt: skip
    text = json.dumps(json.loads(make_response(message_id))["body"])
    headers = [{"name": "Request-Id", "value": f"req_{message_id}"}, {"name": "Set-Cookie", "value": CREDENTIAL}]
    response = {"status": 200, "headers": headers, "content": {"mimeType": "application/json", "text": text}}
    entry = {"startedDateTime": "2025-05-29T23:38:24.250+02:00", "time": 1250, "request": request, "response": response,
             "timings": {"send": 0, "wait": 800, "receive": 450}}  # fmt: skip
    for key, change in changes.items():
        entry[key] = entry[key] | change if isinstance(change, dict) else change
    return entry


def make_har(path: Path, entries: Iterable[object]) -> Path:
    """A HAR file; strings are entries as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = ",\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    creator = {"name": 'says "entries": [', "version": "1"}
    path.write_text(f'{{"log": {{"version": "1.2", "creator": {json.dumps(creator)}, "entries": [{listed}]}}}}')
    return path


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder with its time of change and bytes: what reading must leave as it was."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }
