"""Which files of the landing folder stand still: what is still being copied or written is left for later."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from kv_pipeline.landing import Landing
from kv_pipeline.schemas.requests import CLAUDE_CODE_PROXY
from kv_pipeline.sources.claude_code_proxy.connection import read_only_uri

PATIENCE: Final = 10
"""Times the settling time after which a file that still can't be opened is requested all the same, to be reported."""
_HEADER_BYTES: Final = 100
_WAL_VERSION: Final = 2
_LARGEST_PAGE: Final = 65_536

Seen = Mapping[str, tuple[str, float]]
"""What was seen: a recording, or `transcripts of` a user, to its fingerprint and when it first had that (seconds)."""


class Settled(NamedTuple):
    """What stands still, and what does not.

    Attributes:
        landing: The landing folder without what does not stand still yet.
        waiting: What is left out, sorted.
        seen: To be given with the next look.
    """

    landing: Landing
    waiting: list[str]
    seen: dict[str, tuple[str, float]]


def settled(landing: Landing, seen: Seen, now_s: float, settle_s: float) -> Settled:
    """The part of a landing folder that has not changed, in size and time, for a while; call it at every look.

    A clock that was set back only makes files wait anew.

    Args:
        landing: What is there.
        seen: What the look before returned.
        now_s: The time, in seconds since 1970.
        settle_s: How long a file must not have changed.
    """
    current = {key: file.fingerprint for key, file in landing.databases.items()}
    current |= {_of(user): transcripts.fingerprint for user, transcripts in landing.transcripts.items()}
    since = {key: _since(seen.get(key), fingerprint, now_s) for key, fingerprint in current.items()}
    still = {key for key, first_s in since.items() if now_s - first_s >= settle_s}
    for key, file in landing.databases.items():
        is_checked = key in still and file.recorded_by == CLAUDE_CODE_PROXY and file.is_here
        if is_checked and now_s - since[key] < PATIENCE * settle_s and not is_openable(file.path):
            still.discard(key)
    there = replace(
        landing,
        databases={key: file for key, file in landing.databases.items() if key in still},
        transcripts={user: files for user, files in landing.transcripts.items() if _of(user) in still},
    )
    return Settled(there, sorted(set(current) - still), {key: (current[key], since[key]) for key in current})


def is_openable(path: Path) -> bool:
    """Whether a database is whole and nobody holds it locked; True of what is no database, which is told elsewhere.

    A database in WAL mode is judged by its header alone: opening it would write beside it.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError:
        return True
    if len(header) < _HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        return True
    if size < _page_bytes(header) * int.from_bytes(header[28:32], "big"):
        return False
    return header[18] == _WAL_VERSION or _is_unlocked(path)


def _page_bytes(header: bytes) -> int:
    """Bytes of a page. Source: https://www.sqlite.org/fileformat.html, 1.3.2."""
    written = int.from_bytes(header[16:18], "big")
    return _LARGEST_PAGE if written == 1 else written


def _is_unlocked(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(read_only_uri(path), uri=True, timeout=0)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    except sqlite3.DatabaseError:
        return True
    return True


def _of(user_id: str) -> str:
    return f"transcripts of {user_id}"


def _since(before: tuple[str, float] | None, fingerprint: str, now_s: float) -> float:
    if before is None or before[0] != fingerprint or before[1] > now_s:
        return now_s
    return before[1]
