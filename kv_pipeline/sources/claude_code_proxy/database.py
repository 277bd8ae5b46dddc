"""Opening a proxy's SQLite database without ever writing to it or beside it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from kv_pipeline.errors import InputError

SQLITE_MAGIC: Final = b"SQLite format 3\x00"
_WAL_VERSION: Final = 2
_LOCK_TIMEOUT_S: Final = 10.0
_REQUIRED_COLUMNS: Final = ("id", "timestamp", "body", "response")
_OPTIONAL_COLUMNS: Final = ("endpoint", "model", "routed_model")


class RequestRow(NamedTuple):
    """One row of the proxy's `requests` table; text as UTF-8 bytes, None where the column is NULL or missing."""

    row_id: int
    id: bytes | None
    timestamp: bytes | None
    body: bytes | None
    response: bytes | None
    endpoint: bytes | None
    model: bytes | None
    routed_model: bytes | None


def read_rows(path: Path, database_id: str) -> Iterator[RequestRow]:
    """Rows of a proxy database in row order, from one read transaction.

    Raises:
        InputError: The file is no database, is locked, lacks the table or a column, or is damaged. Rows before the
            damage have been yielded by then.
    """
    _check_header(path, database_id)
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(_opened(path, stack))
            connection.execute("BEGIN")
            query = _query(connection, database_id)
            yield from map(RequestRow._make, connection.execute(query))
    except sqlite3.OperationalError as error:
        raise _operational_error(database_id, error) from error
    except sqlite3.DatabaseError as error:
        raise InputError(
            "damaged_database", database_id, f"SQLite says: {error}",
            "Recover it with `sqlite3 FILE .recover`, or copy it again from where it was written.",
        ) from error  # fmt: skip


def _check_header(path: Path, database_id: str) -> None:
    try:
        with path.open("rb") as file:
            header = file.read(len(SQLITE_MAGIC))
    except OSError as error:
        raise InputError(
            "unreadable_file",
            database_id,
            f"the file can't be read: {error.strerror}",
            "Check its permissions.",
        ) from error
    if not header:
        raise InputError("empty_file", database_id, "the file is empty", "Copy it again, or remove it.")
    if header != SQLITE_MAGIC:
        raise InputError(
            "not_a_database",
            database_id,
            "the file is no SQLite database",
            "Remove it, or rename it from .db.",
        )


@contextlib.contextmanager
def _opened(path: Path, stack: contextlib.ExitStack) -> Iterator[sqlite3.Connection]:
    """A read-only connection that leaves no file behind."""
    wal, shm, journal = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))
    options = "mode=ro"
    if _is_wal(path) and not shm.exists():
        # Opening would create -shm beside the input. Without pending frames the file alone is complete.
        if _has_content(wal):
            path = _private_copy(path, wal, stack)
            options = "mode=rw"
        else:
            options = "mode=ro&immutable=1"
    elif _has_content(journal) and not _is_wal(path) and _is_hot(path):
        path = _private_copy(path, journal, stack)
        options = "mode=rw"
    uri = f"file:{quote(str(path.resolve()))}?{options}"
    connection = sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
    connection.text_factory = bytes
    with contextlib.closing(connection):
        yield connection


def _is_wal(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(20)
    return len(header) == 20 and header[18] == _WAL_VERSION


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _is_hot(path: Path) -> bool:
    """Whether a crash left a journal that a reader would have to roll back, which read-only connections can't."""
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
    with contextlib.closing(connection):
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK
    return False


def _private_copy(path: Path, companion: Path, stack: contextlib.ExitStack) -> Path:
    """A copy of a database and its log in a temporary folder, where SQLite may finish what a crash left open."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kv-pipeline-")))
    shutil.copyfile(companion, folder / companion.name)
    return Path(shutil.copyfile(path, folder / path.name))


def _query(connection: sqlite3.Connection, database_id: str) -> str:
    present = {name.decode() for _, name, *_ in connection.execute("PRAGMA table_info(requests)")}
    if not present:
        raise InputError(
            "no_requests_table", database_id, "there is no table `requests`",
            "Only databases written by claude-code-proxy are understood; remove this one from the landing folder.",
        )  # fmt: skip
    missing = [name for name in _REQUIRED_COLUMNS if name not in present]
    if missing:
        raise InputError(
            "missing_column", database_id, f"table `requests` lacks {', '.join(missing)}",
            "Write it with a proxy version that records requests and responses.",
        )  # fmt: skip
    optional = [name if name in present else f"NULL AS {name}" for name in _OPTIONAL_COLUMNS]
    return f"SELECT rowid, {', '.join([*_REQUIRED_COLUMNS, *optional])} FROM requests ORDER BY rowid"


def _operational_error(database_id: str, error: sqlite3.OperationalError) -> InputError:
    if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return InputError(
            "locked_database", database_id, f"another process held it locked for {_LOCK_TIMEOUT_S:.0f} s",
            "Run again when that process is done.",
        )  # fmt: skip
    return InputError(
        "unreadable_database",
        database_id,
        f"SQLite says: {error}",
        "Check that the file is complete and readable.",
    )
