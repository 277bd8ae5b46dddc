"""Requests of many traces on one clock, one at a time, in the order they were sent."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kv_pipeline.core.paths import BlockIds
from kv_pipeline.export.numbering import Numbering
from kv_pipeline.export.pieces import MAIN_AGENT, Json, Piece


@dataclass(frozen=True, slots=True)
class PlacedTrace:
    """A trace that is being written.

    Attributes:
        number: 0-based number in the export.
        trace_id: Its published id.
        piece: Its requests.
        agent_names: Agent to the name it is published under.
    """

    number: int
    trace_id: str
    piece: Piece
    agent_names: dict[str, str]

    def session_id(self, agent_id: str) -> str:
        """The main thread is named like the trace; sub-agents stand behind it."""
        name = self.agent_names[agent_id]
        return self.trace_id if name == MAIN_AGENT else f"{self.trace_id}/{name}"


def agent_names(piece: Piece, *, anonymize: bool) -> dict[str, str]:
    """Names to publish agents under: their own, or numbers in the order of their first requests."""
    names = list(dict.fromkeys(piece.requests["agent_id"].to_list()))
    others = [name for name in names if name != MAIN_AGENT]
    hidden = {name: f"agent_{number:03d}" for number, name in enumerate(others, start=1)}
    return {name: hidden[name] if anonymize and name in hidden else name for name in names}


class PlacedRequest(NamedTuple):
    """A request to be written.

    Attributes:
        trace: Its trace.
        row: Its columns of TRACES by name.
        at_s: Seconds on the clock that all traces of the export share.
        path: Ids of its full blocks.
        tail_id: Id of the tokens behind them, if it is known.
    """

    trace: PlacedTrace
    row: Json
    at_s: float
    path: BlockIds
    tail_id: int | None

    def block_numbers(self, numbering: Numbering) -> list[int]:
        """Published numbers of its full blocks."""
        return numbering.blocks(self.trace.number, self.trace.piece, self.row["model"], self.path)

    def all_numbers(self, numbering: Numbering) -> list[int]:
        """Published numbers of all its blocks, the partial one included: ceil(tokens / block size) of them."""
        n_blocks = -(-self.row["input_tokens"] // self.trace.piece.block_size)
        full = self.block_numbers(numbering)
        place = (self.trace.number, self.trace.piece, self.row["model"])
        return full + numbering.rest(*place, n_blocks - len(full), self.tail_id)


def placed_requests(trace: PlacedTrace, offset_s: float) -> Iterator[PlacedRequest]:
    """The requests of a trace; `offset_s` is the shared clock's time at its t = 0."""
    piece = trace.piece
    rows = piece.requests.iter_rows(named=True)
    for row, path, tail_id in zip(rows, piece.paths(), piece.tail_ids, strict=True):
        yield PlacedRequest(trace, row, offset_s + row["t_s"], path, tail_id)


class Pending(NamedTuple):
    """Traces that have not been loaded yet, and when the first of them begins."""

    starts_at_s: float
    load: Callable[[], Sequence[Iterator[PlacedRequest]]]


def interleaved(pending: Sequence[Pending]) -> Iterator[PlacedRequest]:
    """All requests by time; at one time in the order given.

    Traces are loaded when their time comes, so only those that overlap are in memory together.
    """
    waiting = sorted(enumerate(pending), key=lambda item: (item[1].starts_at_s, item[0]), reverse=True)
    active: list[tuple[float, int, int, int, PlacedRequest, Iterator[PlacedRequest]]] = []
    n_sent = 0
    while waiting or active:
        while waiting and (not active or waiting[-1][1].starts_at_s <= active[0][0]):
            order, group = waiting.pop()
            for place, requests in enumerate(group.load()):
                n_sent += 1
                _push(active, requests, order, place, n_sent)
        if active:
            _, order, place, _, request, requests = heapq.heappop(active)
            yield request
            n_sent += 1
            _push(active, requests, order, place, n_sent)


def _push(
    active: list[tuple[float, int, int, int, PlacedRequest, Iterator[PlacedRequest]]],
    requests: Iterator[PlacedRequest],
    order: int,
    place: int,
    n_sent: int,
) -> None:
    request = next(requests, None)
    if request is not None:
        heapq.heappush(active, (request.at_s, order, place, n_sent, request, requests))
