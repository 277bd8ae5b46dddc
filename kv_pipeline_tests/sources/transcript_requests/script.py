"""Transcripts written record by record, and what was truly sent for each answer: the oracle of the reader."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from kv_pipeline.sources.anthropic_messages.rows import Recording
from kv_pipeline.sources.transcript_requests.drafts import Wanted
from kv_pipeline.sources.transcript_requests.reader import SessionFile, TranscriptRequestReader
from kv_pipeline_tests.factories import SALT
from kv_pipeline_tests.sources.factories import make_transcript

Json = dict[str, Any]
SHAPE = {
    "system": [{"type": "text", "text": "You are a client."}, {"type": "text", "text": "Be brief."}],
    "tools": [{"name": "Read", "description": "Reads", "input_schema": {"type": "object", "properties": {}}}],
}
PARAMS = {"model": "claude-x", "max_tokens": 100, "thinking": {"type": "adaptive"}}


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def call(use_id: str) -> Json:
    return {"type": "tool_use", "id": use_id, "name": "Read", "input": {"path": f"/{use_id}"}}


def result(use_id: str, words: str = "lines") -> Json:
    return {"type": "tool_result", "tool_use_id": use_id, "content": words}


def listed(message: Json) -> Json:
    """A message with a list for content, as digests see it."""
    content = message["content"]
    return {**message, "content": [text(content)] if isinstance(content, str) else content}


def digest(value: Any) -> str:
    compact = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(compact.encode()).hexdigest()


def wire(message: Json, *, is_marked: bool) -> Json:
    """A message in the form in which clients send it."""
    blocks = listed(message)["content"]
    is_plain = message["role"] != "assistant" and len(blocks) == 1 and blocks[0].keys() == {"type", "text"}
    return {**message, "content": blocks[0]["text"] if is_plain and not is_marked else blocks}


@dataclass
class Script:
    """A transcript; the clock advances a second a record."""

    session_id: str = "s1"
    agent_id: str | None = None
    version: str = "2.1.330"
    records: list[Any] = field(default_factory=list)
    last: str | None = None
    n: int = 0

    def add(self, kind: str, **fields: Any) -> str:
        """A record behind the last one, or behind the `parent` given; returns its uuid."""
        self.n += 1
        parent = fields.pop("parent", self.last)
        uuid = f"{self.session_id}-{self.agent_id}-{self.n}"
        time = f"2026-03-02T08:{self.n // 60:02}:{self.n % 60:02}.000Z"
        common = {"uuid": uuid, "parentUuid": parent, "timestamp": time, "sessionId": self.session_id}
        self.records.append({"type": kind, **common, "version": self.version, **fields})
        self.last = uuid
        return uuid

    def user(self, content: Any, **fields: Any) -> str:
        return self.add("user", message={"role": "user", "content": content}, **fields)

    def attachment(self, words: str, role: str, **fields: Any) -> str:
        rendered = [{"content": words}]
        return self.add("attachment", attachment={"type": "x"}, rendered=rendered, renderedRole=role, **fields)

    def answer(self, message_id: str, blocks: list[Json], tokens: int = 1000, **fields: Any) -> list[str]:
        """An answer, a record a block; `tokens` is the bill of the prompt."""
        usage = {"input_tokens": 3, "cache_creation_input_tokens": tokens - 3, "cache_read_input_tokens": 0}
        parent = fields.pop("parent", self.last)
        uuids = []
        for index, block in enumerate(blocks):
            is_last = index == len(blocks) - 1
            stop = ("tool_use" if block["type"] == "tool_use" else "end_turn") if is_last else None
            message = {
                "id": message_id, "role": "assistant", "model": "claude-x", "content": [block], "stop_reason": stop,
                "usage": {**usage, "output_tokens": 50 if is_last else 1},
            }  # fmt: skip
            parent = self.add("assistant", message=message, requestId=f"req_{message_id}", parent=parent, **fields)
            uuids.append(parent)
        return uuids

    def shape(self, shape: Json = SHAPE) -> None:
        self.records.append({"type": "api-request-shape", "shapeHash": digest(shape), "shape": shape})

    def blob(self, message: Json) -> None:
        record = {"type": "api-request-blob", "hash": digest(listed(message)), "message": message}
        self.records.append(record)

    def request(self, ref: str, messages: list[Json], base: str | None = None, keep: int = 0, **fields: Any) -> None:
        """A recorded request with breakpoints at the end of system prompt and messages."""
        marked = {"type": "ephemeral"}
        blocks = [listed(message) for message in messages]
        last = len(blocks) - 1
        block = len(blocks[last]["content"]) - 1
        body = json.loads(json.dumps({**SHAPE, **PARAMS, "messages": blocks}))
        body["system"][1]["cache_control"] = body["messages"][last]["content"][block]["cache_control"] = marked
        paths = [["system", 1], ["messages", last, "content", block]]
        record = {
            "type": "api-request", "id": ref, "timestamp": f"2026-03-02T08:{self.n // 60:02}:{self.n % 60:02}.500Z",
            "shapeHash": digest(SHAPE), "params": PARAMS, "keep": keep,
            "tail": [digest(message) for message in blocks[keep:]],
            "cacheControl": [{"path": path, "value": marked} for path in paths], "requestDigest": digest(body),
        }  # fmt: skip
        self.records.append(record | ({"base": base} if base else {}) | fields)

    def write(self, folder: Path) -> SessionFile:
        name = f"{self.session_id}.jsonl" if self.agent_id is None else f"agent-{self.agent_id}.jsonl"
        return SessionFile(name, make_transcript(folder / name, self.records))

    @property
    def message_ids(self) -> list[str]:
        found = (r["message"]["id"] for r in self.records if isinstance(r, dict) and r["type"] == "assistant")
        return list(dict.fromkeys(found))


@dataclass
class Read:
    """What the reader made of scripts."""

    recording: Recording
    segments: pl.DataFrame

    @property
    def rows(self) -> pl.DataFrame:
        return self.recording.requests.sort("requested_at_utc", "message_id")

    @property
    def reasons(self) -> list[tuple[str, int | None, str]]:
        return [(skip.source, skip.row, skip.reason) for skip in self.recording.skips]

    def row(self, message_id: str) -> Json:
        return self.rows.row(by_predicate=pl.col("message_id") == message_id, named=True)

    def text_of(self, index: int | None) -> Any:
        return None if index is None else json.loads(self.segments["text"][index])

    def messages(self, message_id: str) -> list[Json]:
        return [self.text_of(index) for index in self.row(message_id)["message_segments"]]


def read_files(files: list[SessionFile], wanted: dict[str, Wanted]) -> Read:
    emitted: list[pl.DataFrame] = []
    reader = TranscriptRequestReader("ada/~transcripts", SALT, False, emitted.append, wanted)
    recording = reader.read([("s1", files)])
    segments = pl.concat(emitted) if emitted else pl.DataFrame({"text": []})
    return Read(recording, segments)


def read_scripts(folder: Path, *scripts: Script, **wanted: Any) -> Read:
    """Read scripts as the files of one session; all their answers are wanted."""
    ids = [(message_id, script) for script in scripts for message_id in script.message_ids]
    belongs = {
        message_id: Wanted("s1", script.agent_id or "main", script.agent_id or "main", **wanted)
        for message_id, script in reversed(ids)
    }
    return read_files([script.write(folder) for script in scripts], belongs)
