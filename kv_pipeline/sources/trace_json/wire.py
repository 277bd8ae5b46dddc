"""Trace files as they are written: what is used of them, and nothing else. docs/trace-format.md has all keys."""

from __future__ import annotations

from collections.abc import Sequence
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
    requests: Sequence[Request | PlainRequest | Subagent]
    agent_id: str = ""
    subagent_type: str | None = None


class TraceFile(msgspec.Struct):
    """A whole file."""

    requests: Sequence[Request | PlainRequest | Subagent]
    block_size: int
    id: str = ""
    hash_id_scope: str = "local"


DECODER: Final = msgspec.json.Decoder(TraceFile)


class WholeRequest(Request, tag="s", gc=False):
    """A request with everything it says."""

    input_types: list[str] = []
    output_types: list[str] = []
    stop: str | None = None
    api_time: float | None = None
    ttft: float | None = None
    think_time: float | None = None


class WholePlainRequest(WholeRequest, tag="n", gc=False):
    """The same, not streamed."""


class WholeSubagent(Subagent, tag="subagent"):
    """A sub-agent with everything it says."""

    requests: Sequence[WholeRequest | WholePlainRequest | WholeSubagent]
    duration_ms: float | None = None
    total_tokens: int | None = None
    tool_use_count: int | None = None
    status: str | None = None
    tool_tokens: int | None = None
    system_tokens: int | None = None


class WholeTraceFile(TraceFile):
    """A whole file with everything it says."""

    requests: Sequence[WholeRequest | WholePlainRequest | WholeSubagent]
    tool_tokens: int | None = None
    system_tokens: int | None = None


WHOLE_DECODER: Final = msgspec.json.Decoder(WholeTraceFile)
