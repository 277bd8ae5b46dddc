"""Trace files as they are written: what is used of them, and nothing else. docs/trace-format.md has all keys."""

from __future__ import annotations

from typing import Final

import msgspec


class Request(msgspec.Struct, tag_field="type", tag="s", gc=False):
    """One request; `n` and `s` differ in nothing that is used."""

    t: float
    model: str
    in_: int = msgspec.field(name="in")
    hash_ids: list[int]
    out: int = 0
    timestamp: str | None = None


class PlainRequest(Request, tag="n", gc=False):
    """A request that was not streamed."""


class Subagent(msgspec.Struct, tag_field="type", tag="subagent"):
    """A sub-agent: a marker in time, and requests of its own."""

    t: float
    requests: list[Request | PlainRequest | Subagent]
    agent_id: str = ""
    subagent_type: str | None = None


class TraceFile(msgspec.Struct):
    """A whole file."""

    requests: list[Request | PlainRequest | Subagent]
    block_size: int
    id: str = ""
    hash_id_scope: str = "local"


DECODER: Final = msgspec.json.Decoder(TraceFile)
