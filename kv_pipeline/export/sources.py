"""Where an export takes its conversations from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kv_pipeline.errors import Skip
from kv_pipeline.export.options import ExportOptions
from kv_pipeline.export.pieces import Json, Piece, main_thread_only, split_at_gaps


class Loaded(NamedTuple):
    """A conversation that was asked for.

    Attributes:
        piece: The whole of it.
        notices: What was repaired in it, or is not as it was asked for.
    """

    piece: Piece
    notices: Sequence[Skip] = ()


class Conversations(Protocol):
    """Conversations to export, by name."""

    @property
    def names(self) -> Sequence[str]:
        """Names in order."""
        ...

    def starts_at_s(self, name: str) -> float | None:
        """When a conversation begins, on a clock that all share; None if that is not known."""
        ...

    def load(self, name: str) -> Loaded:
        """One conversation.

        Raises:
            InputError: It can't be read, or not in blocks of the wanted size.
        """
        ...

    def analysis(self, piece: Piece, options: ExportOptions) -> Json | None:
        """What is known of a piece beyond its requests."""
        ...


def parts(piece: Piece, options: ExportOptions) -> list[Piece]:
    """What of a conversation the options select."""
    selected = piece if options.with_subagents else main_thread_only(piece)
    return split_at_gaps(selected, options.split_at_gap_s)
