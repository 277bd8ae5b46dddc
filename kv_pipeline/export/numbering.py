"""Published block numbers: dense, from 1, in the order of first appearance."""

from __future__ import annotations

from collections import defaultdict

from kv_pipeline.core.paths import BlockIds
from kv_pipeline.export.options import HashIdScope
from kv_pipeline.export.pieces import Piece


class Numbering:
    """Gives blocks their numbers.

    Args:
        scope: How far a number stands for the same block.
        is_restarting: Whether each trace's numbers start at 1 in the local scope, as they do where a trace is a file.
        is_by_model: Whether blocks of different models have different numbers: where rows don't name their model, its
            cache would be taken for that of another.
    """

    def __init__(self, scope: HashIdScope, *, is_restarting: bool = False, is_by_model: bool = False) -> None:
        self._is_local = scope is HashIdScope.LOCAL
        self._is_restarting, self._is_by_model = is_restarting, is_by_model
        self._numbers: defaultdict[tuple[int | None, str | None], dict[int, int]] = defaultdict(dict)
        self._last = 0

    @property
    def n_numbers(self) -> int:
        """Numbers given so far."""
        return self._last

    def start(self) -> None:
        """A new trace begins, and nothing of those before it follows."""
        if self._is_local:
            self._numbers.clear()
            self._last = 0 if self._is_restarting else self._last

    def blocks(self, trace_number: int, piece: Piece, model: str, path: BlockIds) -> list[int]:
        """Numbers of a prompt's full blocks."""
        known = self._known(trace_number, piece, model)
        return [known.get(block) or self._next(known, block) for block in path.tolist()]

    def rest(self, trace_number: int, piece: Piece, model: str, n_missing: int, tail_id: int | None) -> list[int]:
        """Numbers of what is behind the known blocks of a prompt: blocks without an id, then the partial block.

        What is not known to be equal to anything gets a number of its own.

        Args:
            trace_number: Number of the trace in the export.
            piece: The trace.
            model: Model of the request.
            n_missing: Blocks, the partial one included, behind the last known one.
            tail_id: Id of the partial block; None if there is none, or it is not known.
        """
        if not n_missing:
            return []
        private = [self._private() for _ in range(n_missing - 1)]
        known = self._known(trace_number, piece, model)
        last = self._private() if tail_id is None else known.get(tail_id) or self._next(known, tail_id)
        return [*private, last]

    def _known(self, trace_number: int, piece: Piece, model: str) -> dict[int, int]:
        owner = trace_number if self._is_local or piece.has_own_ids else None
        return self._numbers[owner, model if self._is_by_model else None]

    def _next(self, known: dict[int, int], block: int) -> int:
        known[block] = number = self._private()
        return number

    def _private(self) -> int:
        self._last += 1
        return self._last
