"""JSONL as in Alibaba's published Bailian traces. docs/export-formats.md has units and rounding.

Source: alibaba-edu/qwen-bailian-usagetraces-anon, as AIPerf 0.13 reads it.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from kv_pipeline.export.numbering import Numbering
from kv_pipeline.export.placed import PlacedRequest

NO_PARENT: Final = -1
_REQUEST_TYPE: Final = "text"


class BailianRow(msgspec.Struct):
    """One line.

    Attributes:
        chat_id: Number of the request in the file, from 0.
        parent_chat_id: Number of the agent's request before, -1 for its first.
        timestamp: Seconds since the export's first request.
        input_length: Tokens of the prompt.
        output_length: Tokens of the answer.
        type: Always `text`.
        turn: 1-based place among the agent's requests.
        hash_ids: Numbers of its blocks, the partial last one included.
    """

    chat_id: int
    parent_chat_id: int
    timestamp: float
    input_length: int
    output_length: int
    type: str
    turn: int
    hash_ids: list[int]


ROW_DECODER: Final = msgspec.json.Decoder(BailianRow)


class BailianEncoder:
    """Makes lines of requests in order of time.

    Args:
        numbering: Numbers of blocks.
    """

    def __init__(self, numbering: Numbering) -> None:
        self._numbering = numbering
        self._encoder = msgspec.json.Encoder()
        self._latest: dict[tuple[int, str], int] = {}
        self._turns: Counter[tuple[int, str]] = Counter()
        self._n_rows = 0

    def __call__(self, request: PlacedRequest) -> bytes:
        """One line."""
        agent = (request.trace.number, request.row["agent_id"])
        self._turns[agent] += 1
        row = BailianRow(
            chat_id=self._n_rows,
            parent_chat_id=self._latest.get(agent, NO_PARENT),
            timestamp=round(request.at_s, 3),
            input_length=request.row["input_tokens"],
            output_length=request.row["output_tokens"],
            type=_REQUEST_TYPE,
            turn=self._turns[agent],
            hash_ids=request.all_numbers(self._numbering),
        )
        self._latest[agent] = self._n_rows
        self._n_rows += 1
        return self._encoder.encode(row) + b"\n"
