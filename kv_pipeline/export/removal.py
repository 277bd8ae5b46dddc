"""Removing a user from what was written for others: trace files and report pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kv_pipeline.errors import UsageError
from kv_pipeline.names import safe_name

_SUFFIXES: Final = frozenset({".json", ".html", ".png", ".csv", ".parquet", ".svg", ".xlsx"})
"""Files that exports and reports consist of; nothing else is ever touched."""
_UNIQUE_LENGTH: Final = 32
"""Session ids from this length on, such as UUIDs, name one conversation; shorter ones could be anything."""


class RemovedFiles(NamedTuple):
    """What was done in a folder of exports.

    Attributes:
        removed: Files that were the user's, or that name one of their conversations.
        anonymous: Trace files without names: whose they are can't be told.
    """

    removed: list[Path]
    anonymous: list[Path]


def remove_user_files(folder: Path, user_id: str, conversation_ids: Sequence[str]) -> RemovedFiles:
    """Remove a user's files from a folder that `export` or `report` wrote.

    Pages and sidecars of everybody, such as index.html, go too if they name one of the user's conversations; write them
    again for who is left.

    Raises:
        UsageError: There is no such folder, or a file can't be removed.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder. Name folders that `export` or `report` wrote.")
    sessions = [key.partition("/")[2] for key in conversation_ids]
    names = [text for key in conversation_ids for text in (key, key.replace("/", "_"))]
    marks = [text.encode() for text in (*names, *(each for each in sessions if len(each) >= _UNIQUE_LENGTH))]
    removed, anonymous = list[Path](), list[Path]()
    try:
        for path in _written(folder):
            relative = path.relative_to(folder)
            if _is_named_after(relative, user_id, conversation_ids) or _contains(path, marks):
                path.unlink()
                removed.append(path)
            elif path.suffix == ".json" and _is_anonymous(path):
                anonymous.append(path)
    except OSError as error:
        raise UsageError(f"{error.filename or folder} can't be removed: {error.strerror}.") from error
    return RemovedFiles(removed, anonymous)


def _written(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file())


def _is_named_after(relative: Path, user_id: str, conversation_ids: Sequence[str]) -> bool:
    if user_id in relative.parts[:-1]:
        return True
    return any(relative.stem.startswith(safe_name(key.replace("/", "_"))) for key in conversation_ids)


def _contains(path: Path, marks: Sequence[bytes]) -> bool:
    content = path.read_bytes()
    return any(mark in content for mark in marks)


def _is_anonymous(path: Path) -> bool:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except msgspec.MsgspecError:
        return False
    return isinstance(found, dict) and str(found.get("id", "")).startswith("trace_")
