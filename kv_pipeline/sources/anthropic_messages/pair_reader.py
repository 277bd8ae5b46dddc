"""Reading a file of recorded request/response pairs, one after the other: what such formats share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

import polars as pl

from kv_pipeline.errors import InputError, Skip
from kv_pipeline.schemas.columns import GrowingFrame
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.sources.anthropic_messages.rows import LEFT_OUT, Recording, RequestRows
from kv_pipeline.sources.interning import Row

UNANSWERED: Final = "The request is kept as one without an answer."


class PairReader(ABC):
    """Reads one file; a format says what its pairs are.

    Args:
        database_id: Name of the file in the store.
        salt: Secret of the store.
        keep_billing_header: Leave billing headers as they are.
        emit_segments: Receives frames of `SEGMENTS` as the file is read.
    """

    recorded_by: str
    """One of `RECORDERS`."""
    pair_name: str
    """What a pair is called in messages."""
    place_name: str
    """What is counted to say where it is."""

    def __init__(
        self,
        database_id: str,
        salt: bytes,
        keep_billing_header: bool,
        emit_segments: Callable[[pl.DataFrame], None],
    ) -> None:
        self.database_id = database_id
        self.maker = RequestRows(database_id, self.recorded_by, salt, keep_billing_header, emit_segments)
        self.skips: list[Skip] = []
        self._rows = GrowingFrame(RAW_REQUESTS)
        self._seen: dict[bytes, int] = {}

    def read(self, path: Path) -> Recording:
        """Read every pair; what can't be used is listed, not raised."""
        try:
            if path.exists() and not path.is_file():
                raise OSError(0, "it is no regular file")
            with path.open("rb") as file:
                self.pairs(file)
        except OSError as error:
            found = f"the file can't be read: {error.strerror}"
            self.skips.append(Skip(self.database_id, None, "unreadable_file", found, "Check its permissions."))
        return Recording(self.maker.frame(self._rows), self.skips)

    @abstractmethod
    def pairs(self, file: BinaryIO) -> None:
        """Go through the file, with `use` for each pair."""

    @abstractmethod
    def row(self, number: int, raw: bytes) -> Row | None:
        """A pair's row; None for what is no pair and no loss, such as an empty line.

        Raises:
            InputError: It can't be used.
        """

    def use(self, number: int, raw: bytes) -> None:
        """Take a pair's row; what is wrong with it is listed."""
        try:
            row = self.row(number, raw)
        except InputError as error:
            self.skips.append(Skip.of(error))
        else:
            if row is not None:
                self._rows.append(row)

    def is_repeated(self, number: int, digest: bytes) -> bool:
        """Whether the same pair was there before, which is noted."""
        first = self._seen.setdefault(digest, number)
        if first != number:
            found = f"the {self.pair_name} repeats {self.place_name} {first}"
            self.note(number, "repeated_pair", found, "It is counted once.")
        return first != number

    def note(self, number: int, reason: str, found: str, remedy: str = UNANSWERED) -> None:
        """List what was found of a pair that is used all the same."""
        self.skips.append(Skip(self.database_id, number, reason, found, remedy, is_left_out=False))

    def time(self, number: int, requested_at: Callable[[], datetime], what: str) -> datetime:
        """Time of a request.

        Raises:
            InputError: It can't be read.
        """
        try:
            return requested_at()
        except ValueError as error:
            raise self.error("bad_timestamp", number, f"{what} can't be read") from error

    def error(self, reason: str, number: int, found: str) -> InputError:
        """What is wrong with a pair that is left out."""
        return InputError(reason, self.database_id, found, LEFT_OUT, number)
