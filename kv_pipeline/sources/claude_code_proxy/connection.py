"""Opening a proxy's SQLite database without ever writing to it or beside it.

A read-only connection to a database in rollback-journal mode touches nothing. One to a database in WAL mode creates or
rewrites `-shm`, and none can read over a crash's journal: such databases are read from a private copy, where SQLite may
finish what was left open. Only if another process keeps writing while we copy is the original read, together with
that process, by the locks that SQLite has for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from kv_pipeline.names import TEMPORARY

LOCK_TIMEOUT_S: Final = 10.0
_WAL_VERSION: Final = 2
_COPY_ATTEMPTS: Final = 3
_READ_ONLY: Final = "mode=ro"
_OWN_COPY: Final = "mode=rw"
_AT_REST: Final = "mode=ro&immutable=1"


@contextlib.contextmanager
def opened(path: Path, scratch: Path | None = None) -> Iterator[sqlite3.Connection]:
    """A connection that leaves the file, its folder and its companions as they are; text comes as UTF-8 bytes.

    Args:
        path: The database, or a link to it.
        scratch: Folder for a private copy; the system's temporary folder if None.

    Raises:
        sqlite3.Error: It can't be opened.
        OSError: It can't be read or copied.
    """
    with contextlib.ExitStack() as stack:
        uri = _uri(path.resolve(), scratch, stack)
        connection = stack.enter_context(contextlib.closing(_connect(uri)))
        connection.text_factory = bytes
        # Reads what is there of a file that is cut off, which SQLite otherwise refuses as a whole.
        connection.execute("PRAGMA writable_schema = ON")
        yield connection


def read_only_uri(path: Path) -> str:
    """Address of a database in rollback-journal mode, which reading leaves as it is."""
    return _file(path.resolve(), _READ_ONLY)


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None)


def _uri(path: Path, scratch: Path | None, stack: contextlib.ExitStack) -> str:
    wal, shm, journal = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))
    if _is_wal(path):
        if not (wal.exists() or shm.exists()):  # closed in good order: the file alone is complete
            return _file(path, _AT_REST)
        companion = wal
    elif journal.is_file() and journal.stat().st_size > 0 and _is_hot(path):
        companion = journal
    else:
        return _file(path, _READ_ONLY)
    copy = _private_copy(path, companion, scratch, stack)
    return _file(path, _READ_ONLY) if copy is None else _file(copy, _OWN_COPY)


def _file(path: Path, options: str) -> str:
    return f"file:{quote(os.fsencode(path))}?{options}"


def _is_wal(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(20)
    return len(header) == 20 and header[18] == _WAL_VERSION


def _is_hot(path: Path) -> bool:
    """Whether a crash left a journal that a reader would have to roll back, which read-only connections can't."""
    with contextlib.closing(_connect(_file(path, _READ_ONLY))) as connection:
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK
    return False


def _private_copy(path: Path, companion: Path, scratch: Path | None, stack: contextlib.ExitStack) -> Path | None:
    """A copy of a database and its log as they were at one moment; None if they never stand still."""
    prefix = f"{TEMPORARY}{os.getpid()}-"
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=scratch)))
    copy = folder / "copy.db"
    for _ in range(_COPY_ATTEMPTS):
        before = _look(path), _look(companion)
        _copy_if_there(companion, copy.with_name(copy.name + companion.name.removeprefix(path.name)))
        _copy_if_there(path, copy)
        if before == (_look(path), _look(companion)):
            return copy
    return None


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _copy_if_there(path: Path, copy: Path) -> None:
    try:
        shutil.copyfile(path, copy)
    except FileNotFoundError:
        copy.unlink(missing_ok=True)
