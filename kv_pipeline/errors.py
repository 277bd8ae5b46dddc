"""Every error a user can meet, and the record of input that was left out.

    KvPipelineError
    ├── InputError        one input file or row can't be used; the rest goes on
    ├── StoreError        the store is missing something, is damaged or belongs to another version
    ├── VocabularyError   the shipped tokenizer vocabulary is not what it should be
    └── UsageError        the command was asked for something that does not exist

A message says what failed, where, what was found and what to do. It never quotes conversation content.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


class KvPipelineError(Exception):
    """Base of all errors raised on purpose by this package."""


class InputError(KvPipelineError):
    """An input file or row that can't be used.

    Args:
        reason: Short machine-readable reason, the key by which skips are counted.
        source: Which input, as its id in the landing folder.
        found: What is wrong, without any conversation content.
        remedy: What the user can do about it.
        row: Row id (database) or line number (transcript), if one is to blame.
    """

    def __init__(self, reason: str, source: str, found: str, remedy: str, row: int | None = None) -> None:
        self.reason, self.source, self.found, self.remedy, self.row = reason, source, found, remedy, row
        where = source if row is None else f"{source}, row {row}"
        super().__init__(f"{where}: {found} ({reason}). {remedy}")


class StoreError(KvPipelineError):
    """The store can't serve a request: missing, damaged or of another format version."""


class VocabularyError(KvPipelineError):
    """The tokenizer vocabulary shipped with the package is missing or altered."""


class UsageError(KvPipelineError):
    """A command names something that does not exist or combines options that exclude each other."""


def needs_extra(module: str, extra: str, why: str) -> None:
    """Check that an optional package is installed.

    Args:
        module: What it is imported as.
        extra: The extra of this package that has it.
        why: What needs it, as the start of a sentence.

    Raises:
        UsageError: It is not.
    """
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"{why} needs packages that are not installed: pip install 'kv-pipeline[{extra}]'.")


@dataclass(frozen=True, slots=True)
class Skip:
    """One piece of input that was left out or repaired, to be counted by reason and shown.

    Attributes:
        source: Id of the database or transcript in the landing folder.
        row: Row id or 1-based line number, None when the whole file is meant.
        reason: Machine-readable reason.
        found: What was found, free of conversation content.
        remedy: What the user can do about it.
        is_left_out: False if the input was used all the same and this is only worth knowing.
    """

    source: str
    row: int | None
    reason: str
    found: str
    remedy: str
    is_left_out: bool = True

    @classmethod
    def of(cls, error: InputError) -> Skip:
        """The record of a recoverable error."""
        return cls(error.source, error.row, error.reason, error.found, error.remedy)
