"""The slow, obvious definition of everything the package computes cleverly.

Nothing of `kv_pipeline.core` or `kv_pipeline.sources` is used here: bodies are parsed whole, copied, serialised and
tokenised whole, and every list is rebuilt for every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tiktoken

import kv_pipeline

VOCABULARY = Path(kv_pipeline.__file__).parent / "core" / "vocabulary" / "cl100k_base.tiktoken"
BILLING_HEADER = "x-anthropic-billing-header:"
CHURNING = ("cch", "cc_prev_req", "cc_prompt_id")


@cache
def encoding() -> tiktoken.Encoding:
    """tiktoken's own cl100k_base, special tokens and all, from our vocabulary file in place of a download."""
    address = b"https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    with TemporaryDirectory() as folder:
        shutil.copy(VOCABULARY, Path(folder) / hashlib.sha1(address, usedforsecurity=False).hexdigest())
        os.environ["TIKTOKEN_CACHE_DIR"] = folder
        try:
            return tiktoken.get_encoding("cl100k_base")
        finally:
            os.environ.pop("TIKTOKEN_CACHE_DIR")
            if before is not None:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def encode(text: str) -> list[int]:
    return encoding().encode_ordinary(text)


# --- Requests to tokens -----------------------------------------------------------------------------------------------


def cleaned(value: Any, payloads: list[tuple[str, str]]) -> Any:
    """A deep copy without `cache_control` and `signature`; base64 data goes to `payloads` as (media type, data)."""
    if isinstance(value, list):
        return [cleaned(item, payloads) for item in value]
    if not isinstance(value, dict):
        return value
    copy = dict(value)
    if copy.get("type") == "base64" and isinstance(copy.get("data"), str):
        payloads.append((str(copy.get("media_type")), copy["data"]))
        copy["data"] = ""
    return {k: cleaned(v, payloads) for k, v in copy.items() if k not in ("cache_control", "signature")}


def zeroed(header: str) -> str:
    """A billing header with zeros for the values that change per turn."""
    words = re.split(r"([;\s])", header)
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if equals and name in CHURNING:
            words[index] = f"{name}={'0' * len(value)}"
    return "".join(words)


def without_churn(system: Any) -> Any:
    if isinstance(system, str):
        return zeroed(system) if system.startswith(BILLING_HEADER) else system
    if not isinstance(system, list):
        return system
    return [
        {**block, "text": without_churn(block["text"])}
        if isinstance(block, dict) and isinstance(block.get("text"), str)
        else block
        for block in system
    ]


def stand_ins(salt: bytes, media_type: str, data: str) -> list[int]:
    """Stand-in ids of one payload: the words of its salted digest with the highest bit set, repeated as needed."""
    digest = hashlib.blake2b(data.encode("utf-8", "surrogatepass"), key=salt, digest_size=32).digest()
    words = [word | 1 << 31 for word in struct.unpack("<8I", digest)]
    n_tokens = pdf_tokens(data) if media_type == "application/pdf" else png_tokens(data)
    return [words[index % 8] for index in range(n_tokens)]


def png_tokens(data: str) -> int:
    """Width x height / 750 after scaling the longer edge to 1568, at most 1600; 1600 for what is no PNG."""
    content = decoded(data)
    if not (content.startswith(b"\x89PNG\r\n\x1a\n") and content[12:16] == b"IHDR" and len(content) >= 24):
        return 1600
    width, height = struct.unpack(">II", content[16:24])
    if not width or not height:
        return 1600
    if max(width, height) > 1568:
        width, height = width * 1568 / max(width, height), height * 1568 / max(width, height)
    return max(1, min(1600, math.ceil(width * height / 750)))


def pdf_tokens(data: str) -> int:
    pages = re.findall(rb"/Type ?/Page(?!s)", decoded(data))
    return 2250 * max(1, len(pages))


def decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data.encode("utf-8", "surrogatepass"))
    except ValueError:
        return b""


@dataclass(frozen=True)
class Prompt:
    """A request's token ids by section, and its block hashes."""

    tools: list[int]
    system: list[int]
    messages: list[int]
    hashes: list[int]

    @property
    def tokens(self) -> list[int]:
        return self.tools + self.system + self.messages


def prompt(body: dict[str, Any], salt: bytes, block_size: int, *, keep_billing_header: bool = False) -> Prompt:
    tools = whole_section_tokens(body.get("tools"), salt)
    system = body.get("system")
    system = whole_section_tokens(system if keep_billing_header else without_churn(system), salt)
    messages = messages_tokens(body["messages"], salt)
    return Prompt(tools, system, messages, block_hashes(tools + system + messages, salt, block_size))


def whole_section_tokens(value: Any, salt: bytes) -> list[int]:
    """Tools or system: payloads' stand-ins, then the text; nothing for a section that was not sent."""
    if value is None:
        return []
    payloads: list[tuple[str, str]] = []
    text = compact(cleaned(value, payloads))
    return [token for payload in payloads for token in stand_ins(salt, *payload)] + encode(text)


def messages_tokens(messages: list[Any], salt: bytes) -> list[int]:
    """The ids of the section's whole string, with each message's stand-ins put in before its own ids.

    A message's own ids start behind `{"` when it begins with that and an ASCII letter. Another message has no ids of
    its own, it counts with the one before it; if it is the first, from the section's start.
    """
    text, places = "[", []
    own_start = 0
    for index, message in enumerate(messages):
        payloads: list[tuple[str, str]] = []
        message_text = compact(cleaned(message, payloads))
        text += "," if index else ""
        if re.match(r'\{"[A-Za-z]', message_text):
            own_start = len(text) + 2
        places += [(own_start, stand_ins(salt, *payload)) for payload in payloads]
        text += message_text
    tokens = encode(text + "]")
    for place, ids in reversed(places):
        n_before = len(encode(text[:place]))
        assert encode(text[:place]) == tokens[:n_before], "stand-ins would split a token"
        tokens = tokens[:n_before] + ids + tokens[n_before:]
    return tokens


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def block_hashes(tokens: list[int], salt: bytes, block_size: int) -> list[int]:
    hashes, parent = [], bytes(8)
    for number in range(len(tokens) // block_size):
        block = tokens[number * block_size : (number + 1) * block_size]
        content = parent + b"".join(token.to_bytes(4, "little") for token in block)
        parent = hashlib.blake2b(content, key=salt, digest_size=8).digest()
        hashes.append(int.from_bytes(parent, "little"))
    return hashes


def numbered(paths: Iterable[list[int]]) -> list[list[int]]:
    """Hashes as dense numbers from 1 in order of first appearance."""
    seen: dict[int, int] = {}
    return [[seen.setdefault(block, len(seen) + 1) for block in path] for path in paths]


# --- Cache ------------------------------------------------------------------------------------------------------------


def hit_blocks(uses: Iterable[tuple[Hashable, float, list[int]]], lifetime_s: float) -> list[int]:
    """Blocks model: uses are (cache, time, path) in order of time; a prefix is a set member as a whole tuple."""
    caches: dict[Hashable, dict[tuple[int, ...], float]] = defaultdict(dict)
    hits = []
    for name, time_s, path in uses:
        held = caches[name]
        prefixes = [tuple(path[: n + 1]) for n in range(len(path))]
        n_hit = 0
        while n_hit < len(prefixes) and prefixes[n_hit] in held and time_s - held[prefixes[n_hit]] <= lifetime_s:
            n_hit += 1
        hits.append(n_hit)
        held.update(dict.fromkeys(prefixes, time_s))
    return hits


# --- Twins ------------------------------------------------------------------------------------------------------------


def twins(rows: Iterable[tuple[int, bool, Hashable]]) -> dict[int, int]:
    """Replay row to the streaming row it repeats; rows are (row id, is streaming, content) in order."""
    unpaired: dict[Hashable, list[int]] = defaultdict(list)
    latest: dict[Hashable, int] = {}
    pairs = {}
    for row_id, is_streaming, content in rows:
        if is_streaming:
            unpaired[content].append(row_id)
            latest[content] = row_id
        elif unpaired[content]:
            pairs[row_id] = unpaired[content].pop(0)
        elif content in latest:
            pairs[row_id] = latest[content]
    return pairs


# --- Landing folders --------------------------------------------------------------------------------------------------


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
        kept = len(os.path.commonprefix([hashes[last], hashes[index]]))
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
