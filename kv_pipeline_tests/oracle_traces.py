"""A landing folder as traces, the slow way: whole files are read and lists are searched."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from kv_pipeline_tests.oracle import common_prefix, twins


@dataclass
class Row:
    """A recorded request."""

    database: str
    row_id: int
    time: datetime
    body: dict[str, Any]
    is_ok: bool
    message_id: str | None
    stop: str | None
    output_types: list[str]
    usage: dict[str, int]
    api_time_s: float | None
    ttft_s: float | None
    completed: datetime | None

    @property
    def content(self) -> str:
        return json.dumps([self.body.get("model"), *(self.body.get(k) for k in ("tools", "system", "messages"))])


@dataclass
class Turn:
    """A traced request: the row that paid, the row that answered, and who made it."""

    session: str
    agent: str
    billed: Row
    answer: Row


def user_rows(folder: Path) -> list[Row]:
    rows = []
    for path in sorted(folder.rglob("*.db")):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT rowid, timestamp, body, response FROM requests ORDER BY rowid")
            rows += [_row(path.stem, *values) for values in found]
    return rows


def _row(database: str, row_id: int, timestamp: str, body: str, response: str | None) -> Row:
    answer = json.loads(response) if response else {}
    message = _streamed(answer["streamingChunks"]) if answer.get("streamingChunks") else _stored(answer.get("body"))
    headers = {name.lower(): values[0] for name, values in (answer.get("headers") or {}).items()}
    duration = re.search(r"dur=([\d.]+)", headers.get("server-timing", ""))
    ttft_ms = duration[1] if duration else headers.get("x-envoy-upstream-service-time")
    status, milliseconds, completed = (answer.get(k) for k in ("statusCode", "responseTime", "completedAt"))
    return Row(
        database=database,
        row_id=row_id,
        time=datetime.fromisoformat(timestamp),
        body=json.loads(body),
        is_ok=message["complete"] and (status or 200) < 400,
        message_id=message["id"],
        stop=message["stop"],
        output_types=sorted(set(message["types"])),
        usage=message["usage"],
        api_time_s=None if milliseconds is None else milliseconds / 1000,
        ttft_s=None if ttft_ms is None else float(ttft_ms) / 1000,
        completed=None if completed is None else datetime.fromisoformat(completed),
    )


def _stored(body: Any) -> dict[str, Any]:
    body = body if isinstance(body, dict) else {}
    types = [block["type"] for block in body.get("content") or []]
    usage = body.get("usage") or {}
    return {
        "id": body.get("id"), "stop": body.get("stop_reason"), "types": types, "usage": usage,
        "complete": "id" in body,
    }  # fmt: skip


def _streamed(lines: list[str]) -> dict[str, Any]:
    message: dict[str, Any] = {"id": None, "stop": None, "types": [], "usage": {}, "complete": False}
    for event in (json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")):
        if event["type"] == "message_start":
            message["id"] = event["message"]["id"]
            message["usage"] |= event["message"]["usage"]
        if event["type"] == "content_block_start":
            message["types"].append(event["content_block"]["type"])
        if event["type"] == "message_delta":
            message["stop"] = event["delta"].get("stop_reason")
            message["usage"] |= event.get("usage") or {}
        if event["type"] == "message_stop":
            message["complete"] = True
    return message


def replay_pairs(rows: list[Row]) -> dict[tuple[str, int], Row]:
    """(database, row id) of a replay to the streaming row it repeats."""
    pairs = {}
    by_database: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.is_ok:
            by_database[row.database].append(row)
    for database, own in by_database.items():
        ordered = sorted(own, key=lambda row: (row.time, row.row_id))
        of_id = {row.row_id: row for row in own}
        found = twins((row.row_id, row.body.get("stream") is True, row.content) for row in ordered)
        pairs |= {(database, replay): of_id[first] for replay, first in found.items()}
    return pairs


def answers(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(session, agent) to its answers: message id to the time of its first record."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for path in sorted((folder / "projects").rglob("*.jsonl")):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        agent = path.stem.removeprefix("agent-") if path.name.startswith("agent-") else "main"
        session = path.stem if agent == "main" else next(r["sessionId"] for r in records if "sessionId" in r)
        mine = found.setdefault((session, agent), {})
        for record in records:
            message = record.get("message") or {}
            is_real = message.get("model") != "<synthetic>" and not record.get("isApiErrorMessage")
            if record.get("type") == "assistant" and is_real:
                mine.setdefault(message["id"], record["timestamp"])
    return found


def owners(found: dict[tuple[str, str], dict[str, str]], depth: dict[str, int]) -> dict[str, tuple[str, str]]:
    """Message id to the session and agent it counts for.

    Of sessions that hold the same answers, the one that has none of its own came first, since the other went on from
    it; otherwise the one whose own answers came first. Within a session the agent nearest to the main thread.
    """
    sessions: dict[str, set[str]] = defaultdict(set)
    for (session, _), mine in found.items():
        for message in mine:
            sessions[message].add(session)
    began: dict[str, str] = {}
    for (session, _), mine in found.items():
        for message, time in mine.items():
            if len(sessions[message]) == 1:
                began[session] = min(began.get(session, time), time)
    return {
        message: min(
            ((session, agent) for (session, agent), mine in found.items() if message in mine),
            key=lambda place: (began.get(place[0], ""), depth.get(place[1], 0), place),
        )
        for message in sessions
    }


def agent_depths(folder: Path) -> dict[str, int]:
    """Main thread 0; others by their meta file, 1 without one."""
    depths = {"main": 0}
    for path in (folder / "projects").rglob("agent-*.jsonl"):
        meta = path.with_name(path.stem + ".meta.json")
        depths[path.stem.removeprefix("agent-")] = json.loads(meta.read_text())["spawnDepth"] if meta.exists() else 1
    return depths


def turns(folder: Path) -> list[Turn]:
    """A user's traced requests: each answer that both a transcript and a database know, in trace order."""
    rows = user_rows(folder)
    pairs = replay_pairs(rows)
    owned = owners(answers(folder), agent_depths(folder))
    found, seen = [], set()
    for row in rows:
        if row.is_ok and row.message_id in owned and row.message_id not in seen:
            seen.add(row.message_id)
            billed = pairs.get((row.database, row.row_id), row)
            found.append(Turn(*owned[row.message_id], billed, row))
    return sorted(
        found,
        key=lambda t: (
            t.session, t.billed.time, len(t.billed.body["messages"]), t.billed.database, t.billed.row_id,
        ),
    )  # fmt: skip


def by_session(found: list[Turn]) -> Iterator[tuple[str, list[Turn]]]:
    sessions: dict[str, list[Turn]] = defaultdict(list)
    for turn in found:
        sessions[turn.session].append(turn)
    yield from sessions.items()


def think_times_s(found: list[Turn]) -> list[float]:
    """Seconds since the agent's answer before was complete, per turn of one conversation."""
    ended: dict[str, datetime] = {}
    times = []
    for turn in found:
        gap = (turn.billed.time - ended[turn.agent]).total_seconds() if turn.agent in ended else 0.0
        times.append(max(0.0, gap))
        lasted = timedelta(seconds=turn.billed.api_time_s or 0)
        ended[turn.agent] = turn.answer.completed or turn.billed.time + lasted
    return times


def input_types(found: list[Turn], hashes: list[list[int]]) -> list[list[str]]:
    """What was new in each request of one conversation."""
    before: dict[str, int] = {}
    types = []
    for index, turn in enumerate(found):
        last = before.get(turn.agent)
        before[turn.agent] = index
        if last is None:
            types.append(["text"])
            continue
        kept = common_prefix(hashes[last], hashes[index])
        if kept < len(hashes[last]) / 2:
            types.append(message_types(turn.billed.body["messages"]))
        else:
            types.append(["tool_result"] if found[last].answer.stop == "tool_use" else ["text"])
    return types


def message_types(messages: list[Any]) -> list[str]:
    types = set()
    for message in messages:
        content = message["content"]
        types |= {"text"} if isinstance(content, str) else {block["type"] for block in content}
    return sorted(types)
