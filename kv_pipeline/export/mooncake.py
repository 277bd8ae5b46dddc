"""Mooncake JSONL: a row a request. docs/export-formats.md has units and rounding.

Source: the FAST'25 traces of kvcache-ai/Mooncake; `session_id` and `delay` as AIPerf 0.13 and Dynamo read them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kv_pipeline.export.numbering import Numbering
from kv_pipeline.export.placed import PlacedRequest


class MooncakeRow(msgspec.Struct, omit_defaults=True):
    """One line.

    Attributes:
        timestamp: Milliseconds since the export's first request.
        input_length: Tokens of the prompt.
        output_length: Tokens of the answer.
        hash_ids: Numbers of its blocks, the partial last one included.
        session_id: Agent of a conversation.
        delay: Milliseconds since the session's answer before; None for its first request.
    """

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: list[int]
    session_id: str | None = None
    delay: int | None = None


ROW_DECODER: Final = msgspec.json.Decoder(MooncakeRow)


class MooncakeEncoder:
    """Makes lines of requests in order of time.

    Args:
        numbering: Numbers of blocks.
        with_sessions: Whether to write `session_id` and `delay`.
    """

    def __init__(self, numbering: Numbering, *, with_sessions: bool) -> None:
        self._numbering, self._with_sessions = numbering, with_sessions
        self._encoder = msgspec.json.Encoder()
        self._begun: set[tuple[int, str]] = set()

    def __call__(self, request: PlacedRequest) -> bytes:
        """One line."""
        row = MooncakeRow(
            timestamp=round(request.at_s * 1000),
            input_length=request.row["input_tokens"],
            output_length=request.row["output_tokens"],
            hash_ids=request.all_numbers(self._numbering),
        )
        if self._with_sessions:
            agent_id = request.row["agent_id"]
            row.session_id = request.trace.session_id(agent_id)
            agent = (request.trace.number, agent_id)
            row.delay = round(request.row["think_time_s"] * 1000) if agent in self._begun else None
            self._begun.add(agent)
        return self._encoder.encode(row) + b"\n"
