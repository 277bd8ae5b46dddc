"""Agentic Mooncake v2 JSONL: a header, then requests with what each waits for.

Source: `AgenticMooncakeRow` of Dynamo (`dynamo-data-gen` 1.6); docs/export-formats.md has units and rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import msgspec

from kv_pipeline.core.replay_graph import Dependency, GraphRequest, ReplayNode, replay_graph
from kv_pipeline.export.numbering import Numbering
from kv_pipeline.export.placed import PlacedRequest, PlacedTrace, placed_requests

SCHEMA: Final = "dynamo.agentic_mooncake"
VERSION: Final = 2
_MS_DIGITS: Final = 3


class Source(msgspec.Struct):
    """Where the rows come from: `kv_pipeline`, and the SHA-256 of all lines behind the header."""

    format: str
    digest: str


class Header(msgspec.Struct):
    """The first line."""

    schema: str
    version: int
    block_size: int
    hash_id_scope: str
    source: Source


class RowDependency(msgspec.Struct):
    """A request that is waited for, and how many milliseconds after its dispatch or completion."""

    request_id: str
    trigger: str
    delay_ms: float
    relation: str


class AgenticRow(msgspec.Struct, omit_defaults=True):
    """One request.

    Attributes:
        request_id: Unique in the file.
        play_id: The trace.
        source_play_ordinal: 0-based number of the trace in the file.
        session_id: An agent's requests that don't overlap.
        model: Model that answered.
        input_length: Tokens of the prompt.
        output_length: Tokens of the answer, at least 1.
        hash_ids: Numbers of its blocks, the partial last one included.
        not_before_ms: Milliseconds since the trace's first request.
        dependencies: What it waits for; the trace's first request waits for nothing.
        recorded_api_time_ms: Milliseconds until the answer was complete, if recorded.
    """

    request_id: str
    play_id: str
    source_play_ordinal: int
    session_id: str
    model: str
    input_length: int
    output_length: int
    hash_ids: list[int]
    not_before_ms: float
    dependencies: list[RowDependency] = []
    recorded_api_time_ms: float | None = None


HEADER_DECODER: Final = msgspec.json.Decoder(Header)
ROW_DECODER: Final = msgspec.json.Decoder(AgenticRow)


def header_line(block_size: int, digest: str) -> bytes:
    """The first line; equally long for every digest."""
    return msgspec.json.encode(Header(SCHEMA, VERSION, block_size, "local", Source("kv_pipeline", digest))) + b"\n"


def empty_digest() -> str:
    """What stands in for the digest until all lines are known."""
    return "0" * (2 * hashlib.sha256().digest_size)


def play_lines(trace: PlacedTrace, numbering: Numbering) -> Iterator[bytes]:
    """The lines of a trace."""
    requests = list(placed_requests(trace, 0.0))
    start_s = requests[0].at_s if requests else 0.0
    nodes = replay_graph([_graph_request(r) for r in requests], *_agents(trace))
    encoder = msgspec.json.Encoder()
    for number, (request, node) in enumerate(zip(requests, nodes, strict=True)):
        yield encoder.encode(_row(request, node, number, start_s, numbering)) + b"\n"


def _graph_request(request: PlacedRequest) -> GraphRequest:
    end_s = request.at_s + (request.row["api_time_s"] or 0.0)
    return GraphRequest(request.row["agent_id"], request.at_s, end_s, request.path)


def _agents(trace: PlacedTrace) -> tuple[dict[str, str | None], dict[str, bool]]:
    """Agent to its parent, and whether that waited for it."""
    agents = trace.piece.agents
    parents = {agent["agent_id"]: agent["parent_agent_id"] for agent in agents}
    return parents, {agent["agent_id"]: agent["status"] == "completed" for agent in agents}


def _row(request: PlacedRequest, node: ReplayNode, number: int, start_s: float, numbering: Numbering) -> AgenticRow:
    row, trace = request.row, request.trace
    session_id = trace.session_id(node.agent_id)
    api_time_s = row["api_time_s"]
    return AgenticRow(
        request_id=_request_id(trace, number),
        play_id=trace.trace_id,
        source_play_ordinal=trace.number,
        session_id=f"{session_id}~{node.lane + 1}" if node.lane else session_id,
        model=row["model"],
        input_length=row["input_tokens"],
        output_length=max(1, row["output_tokens"]),
        hash_ids=request.all_numbers(numbering),
        not_before_ms=_ms(request.at_s - start_s),
        dependencies=[_dependency(trace, d) for d in node.dependencies],
        recorded_api_time_ms=None if api_time_s is None else _ms(api_time_s),
    )


def _dependency(trace: PlacedTrace, found: Dependency) -> RowDependency:
    return RowDependency(
        _request_id(trace, found.request), found.trigger.value, _ms(found.delay_s), found.relation.value
    )


def _request_id(trace: PlacedTrace, number: int) -> str:
    return f"{trace.trace_id}#{number}"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, _MS_DIGITS)
