"""Writes conversations in one of the formats: selects, splits, names, and leaves the rows to the format."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kv_pipeline.errors import InputError, Skip
from kv_pipeline.export.losses import losses
from kv_pipeline.export.options import OWN_BLOCK_SIZES, ExportOptions, Format, Profile
from kv_pipeline.export.pieces import Piece, with_prompts
from kv_pipeline.export.placed import Pending, PlacedRequest, PlacedTrace, agent_names, interleaved, placed_requests
from kv_pipeline.export.sources import Conversations, parts
from kv_pipeline.export.store_conversations import StoreConversations
from kv_pipeline.export.writers import WRITERS
from kv_pipeline.steps.conversations import Progress, no_progress
from kv_pipeline.store import Store

TOO_SMALL = "fewer requests than --min-requests"
NO_PROMPTS = "requests of no tokens, which readers refuse"


class WrittenTrace(NamedTuple):
    """A trace that was written: its id, where it came from, its requests, and what the format can't hold of it."""

    trace_id: str
    conversation_id: str
    n_requests: int
    not_held: dict[str, int]


class ExportResult(NamedTuple):
    """What an export wrote and left out.

    Attributes:
        files: Files in order; of trace JSON one a trace.
        traces: The traces in them, in order.
        left_out: Reason to number of conversations or pieces that the options leave out.
        notices: Input that could not be used, or was repaired.
    """

    files: list[Path]
    traces: list[WrittenTrace]
    left_out: dict[str, int]
    notices: list[Skip]

    @property
    def n_requests(self) -> int:
        """Requests written."""
        return sum(trace.n_requests for trace in self.traces)

    @property
    def not_held(self) -> dict[str, int]:
        """Reason to number of requests or agents of which the format could not hold something."""
        return dict(sum((Counter(trace.not_held) for trace in self.traces), Counter[str]()))


class Export:
    """One export under way: hands traces to the format's writer, and remembers what became of them.

    Args:
        conversations: What to export.
        out: File or folder to write to.
        options: What was asked for.
        progress: Told of every conversation.
    """

    def __init__(self, conversations: Conversations, out: Path, options: ExportOptions, progress: Progress) -> None:
        self.conversations, self.out, self.options = conversations, out, options
        self._progress = progress
        self._taken: set[str] = set()
        self._written: list[WrittenTrace] = []
        self._left_out = Counter[str]()
        self._notices: list[Skip] = []

    def traces(self) -> Iterator[PlacedTrace]:
        """All traces, one after the other."""
        return itertools.chain.from_iterable(map(self._traces_of, self.conversations.names))

    def requests(self) -> Iterator[PlacedRequest]:
        """The requests of all traces by time, the first at 0; as if all began at once if some clock is not known."""
        starts_s = [self.conversations.starts_at_s(name) for name in self.conversations.names]
        has_clock = None not in starts_s
        pending = [
            Pending((start_s or 0.0) if has_clock else 0.0, partial(self._requests_of, name, has_clock=has_clock))
            for name, start_s in zip(self.conversations.names, starts_s, strict=True)
        ]
        first_s = None
        for request in interleaved(pending):
            first_s = request.at_s if first_s is None else first_s
            yield request._replace(at_s=request.at_s - first_s)

    def result(self, files: Sequence[Path]) -> ExportResult:
        """What became of everything."""
        return ExportResult(list(files), self._written, dict(self._left_out), self._notices)

    def _requests_of(self, name: str, *, has_clock: bool) -> list[Iterator[PlacedRequest]]:
        return [
            placed_requests(trace, (trace.piece.starts_at_s or 0.0) if has_clock else 0.0)
            for trace in self._traces_of(name)
        ]

    def _traces_of(self, name: str) -> Iterator[PlacedTrace]:
        """The traces of one conversation that are wanted."""
        for piece in self._pieces(name):
            held = with_prompts(piece) if self._refuses_empty_prompts else piece
            if held.requests.height < max(1, self.options.min_requests):
                self._left_out[TOO_SMALL if held is piece else NO_PROMPTS] += 1
            else:
                yield self._placed(held, piece.requests.height - held.requests.height)
        self._progress(1)

    @property
    def _refuses_empty_prompts(self) -> bool:
        own = (Format.MOONCAKE, Format.AGENTIC_MOONCAKE, Format.BAILIAN)
        return self.options.format in own or self.options.profile is Profile.STRICT

    def _pieces(self, name: str) -> list[Piece]:
        try:
            loaded = self.conversations.load(name)
        except InputError as error:
            self._notices.append(Skip.of(error))
            return []
        self._notices += loaded.notices
        return parts(loaded.piece, self.options) if loaded.piece.requests.height else []

    def _placed(self, piece: Piece, n_empty: int) -> PlacedTrace:
        number = len(self._written)
        own = piece.conversation_id.replace("/", "_") + piece.suffix
        trace_id = f"trace_{number + 1:04d}" if self.options.anonymize else _unique(own, self._taken)
        self._taken.add(trace_id)
        not_held = losses(piece, self.options) | ({NO_PROMPTS: n_empty} if n_empty else {})
        self._written.append(WrittenTrace(trace_id, piece.conversation_id, piece.requests.height, not_held))
        return PlacedTrace(number, trace_id, piece, agent_names(piece, anonymize=self.options.anonymize))


def export_conversations(
    conversations: Conversations, out: Path, options: ExportOptions, progress: Progress = no_progress
) -> ExportResult:
    """Write conversations in the format that the options name.

    Block numbers are given in the order of first appearance in what is written, see `Numbering`.

    Args:
        conversations: What to export.
        out: Of trace JSON the folder; otherwise the file, or a folder for it. Made if missing.
        options: What to write.
        progress: Told of every conversation.

    Raises:
        UsageError: The options exclude each other, or `out` can't be written.
        StoreError: Tables are missing, or blocks of another size need content that was purged.
    """
    options.check()
    export = Export(conversations, out, options, progress)
    return export.result(WRITERS[options.format](export))


def export_traces(
    store: Store,
    out: Path,
    options: ExportOptions,
    conversation_ids: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> ExportResult:
    """Write conversations of a store.

    Args:
        store: The store.
        out: As for `export_conversations`.
        options: What to write.
        conversation_ids: Only these; all if None. Session ids, or how they begin, are understood.
        progress: Told of every conversation.

    Raises:
        UsageError: The options exclude each other, or a conversation does not exist.
        StoreError: As `export_conversations`.
    """
    options.check()
    block_size = options.block_size or OWN_BLOCK_SIZES.get(options.format) or store.settings.block_size
    return export_conversations(StoreConversations(store, block_size, conversation_ids), out, options, progress)


def _unique(wanted: str, taken: set[str]) -> str:
    """User a_b with session c and user a with session b_c would share a name."""
    names = (wanted if number == 1 else f"{wanted}_{number}" for number in itertools.count(1))
    return next(name for name in names if name not in taken)
