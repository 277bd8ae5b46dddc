"""The rows of a proxy's SQLite database, read in one transaction: as they were at one moment, though a proxy writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kv_pipeline.errors import InputError
from kv_pipeline.limits import PAYLOAD_VARIABLE, max_payload_bytes
from kv_pipeline.sources.claude_code_proxy.connection import LOCK_TIMEOUT_S, opened

SQLITE_MAGIC: Final = b"SQLite format 3\x00"
_REQUIRED_COLUMNS: Final = ("id", "timestamp", "body", "response")
_OPTIONAL_COLUMNS: Final = ("endpoint", "model", "routed_model")
_HEADERS: Final = "headers"
_IDENTITIES: Final = {"session_id": "X-Claude-Code-Session-Id", "agent_id": "X-Claude-Code-Agent-Id"}
"""What is asked of the headers, which hold credentials: SQLite hands out these two and nothing else."""
_BATCH_ROWS: Final = 16
_FIRST_ROW: Final = -(2**63)
_LAST_ROW: Final = 2**63 - 1
_PRIMARY_CODE: Final = 0xFF
_OF_ONE_ROW: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG)
_LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NOT_ACCESSIBLE: Final = (
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL,
)  # fmt: skip
_ONLY_PROXIES: Final = (
    "Only databases written by claude-code-proxy are understood; remove this one from the landing folder."
)


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
    session_id: bytes | None
    agent_id: bytes | None


def read_rows(path: Path, database_id: str, scratch: Path | None = None) -> Iterator[RequestRow | InputError]:
    """Rows of a proxy database in row order; an error stands for a row that is damaged.

    Args:
        path: The database.
        database_id: What to call it in messages.
        scratch: Folder for a private copy, should one be needed.

    Raises:
        InputError: The file is no database, is locked, lacks the table or a column, or is damaged. Rows before the
            damage have been yielded by then.
    """
    try:
        _check_header(path, database_id)
        with opened(path, scratch) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max_payload_bytes())  # SQLite loads no longer rows
            connection.execute("BEGIN")
            yield from _rows(connection, _query(connection, database_id), database_id)
    except OSError as error:
        found, remedy = f"the file can't be read: {error.strerror}", "Check its permissions, and the space for a copy."
        raise InputError("unreadable_file", database_id, found, remedy) from error
    except sqlite3.Error as error:
        raise _refusal(database_id, error) from error


def _check_header(path: Path, database_id: str) -> None:
    if not path.is_file() and (path.exists() or path.is_symlink()):
        found = "it is no regular file, or a link to none"
        raise InputError("not_a_file", database_id, found, "Remove it, or rename it from .db.")
    with path.open("rb") as file:
        header = file.read(len(SQLITE_MAGIC))
    if not header:
        raise InputError("empty_file", database_id, "the file is empty", "Copy it again, or remove it.")
    if header != SQLITE_MAGIC:
        found, remedy = "the file is no SQLite database", "Remove it, or rename it from .db."
        raise InputError("not_a_database", database_id, found, remedy)


def _query(connection: sqlite3.Connection, database_id: str) -> str:
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND lower(name) = 'requests'")
    if tables.fetchone() is None:
        raise InputError("no_requests_table", database_id, "there is no table `requests`", _ONLY_PROXIES)
    columns = connection.execute("PRAGMA table_info(requests)").fetchall()
    present = {_text(name).lower() for _, name, *_ in columns}
    missing = [name for name in _REQUIRED_COLUMNS if name not in present]
    if missing:
        found = f"table `requests` lacks {', '.join(missing)}"
        remedy = "Write it with a proxy version that records requests and responses."
        raise InputError("missing_column", database_id, found, remedy)
    optional = [name if name in present else f"NULL AS {name}" for name in _OPTIONAL_COLUMNS]
    identities = [_identity(name, header) if _HEADERS in present else f"NULL AS {name}"
                  for name, header in _IDENTITIES.items()]  # fmt: skip
    selected = ", ".join([*_REQUIRED_COLUMNS, *optional, *identities])
    return f"SELECT rowid, {selected} FROM requests WHERE rowid BETWEEN ? AND ? ORDER BY rowid LIMIT ?"


def _identity(name: str, header: str) -> str:
    """SQL for a header's first value; NULL for anything but JSON text."""
    value = f"""json_extract({_HEADERS}, '$."{header}"[0]')"""
    is_json = f"typeof({_HEADERS}) = 'text' AND json_valid({_HEADERS})"
    return f"CASE WHEN {is_json} THEN {value} END AS {name}"


def _rows(connection: sqlite3.Connection, query: str, database_id: str) -> Iterator[RequestRow | InputError]:
    """Where a batch meets damage, the rows around it are read one by one."""
    first, last, limit = _FIRST_ROW, _last_row_id(connection, database_id), _BATCH_ROWS
    while first <= last:
        try:
            n_rows = 0
            for row in connection.execute(query, (first, last, limit)):  # one in memory at a time
                if row[0] < first:
                    raise _out_of_order(database_id)
                yield RequestRow(row[0], *map(_bytes, row[1:]))
                first, n_rows = row[0] + 1, n_rows + 1
        except sqlite3.DatabaseError as error:
            if _code(error) not in _OF_ONE_ROW:
                raise
            if limit > 1:
                limit = 1
                continue
            row_id = _next_row_id(connection, first)
            if row_id is None:
                raise
            yield _bad_row(database_id, row_id, error)
            first = row_id + 1
            continue
        if not n_rows:
            return


def _out_of_order(database_id: str) -> InputError:
    """SQLite walks the table's tree, so a page that is in it twice gives its rows twice."""
    return InputError("damaged_database", database_id, "its rows come out of order, or twice", _recovery())


def _bad_row(database_id: str, row_id: int, error: sqlite3.DatabaseError) -> InputError:
    if _code(error) == sqlite3.SQLITE_TOOBIG:
        found = f"its request or answer is longer than {max_payload_bytes():,} bytes"
        return InputError("large_row", database_id, found, f"Raise {PAYLOAD_VARIABLE} if it is wanted.", row_id)
    return InputError("damaged_row", database_id, "the row is damaged", _recovery(), row_id)


def _last_row_id(connection: sqlite3.Connection, database_id: str) -> int:
    """The last row, so that a table whose row ids are no integers is noticed before any row is read."""
    try:
        (last,) = connection.execute("SELECT max(rowid) FROM requests").fetchone()
    except sqlite3.DatabaseError as error:
        if _code(error) != sqlite3.SQLITE_CORRUPT:
            raise
        return _LAST_ROW
    if last is not None and not isinstance(last, int):
        raise InputError("odd_table", database_id, "table `requests` has no row ids", _ONLY_PROXIES)
    return _FIRST_ROW - 1 if last is None else last


def _next_row_id(connection: sqlite3.Connection, first: int) -> int | None:
    """The next row's id, which can be read where only the row's long values are damaged."""
    found = connection.execute("SELECT rowid FROM requests WHERE rowid >= ? ORDER BY rowid LIMIT 1", (first,))
    row = found.fetchone()
    return None if row is None else row[0]


def _bytes(value: object) -> bytes | None:
    """SQLite keeps any type in any column: BLOBs come as bytes like text, numbers as numbers."""
    return value if value is None or isinstance(value, bytes) else str(value).encode()


def _text(value: object) -> str:
    return str(value, "utf-8", "replace") if isinstance(value, bytes) else str(value)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for errors that Python raises."""
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE


def _recovery() -> str:
    return "Recover it with `sqlite3 FILE .recover`, or copy it again from where it was written."


def _refusal(database_id: str, error: sqlite3.Error) -> InputError:
    code, says = _code(error), f"SQLite says: {error}"
    if code in _LOCKED:
        found = f"another process held it locked for {LOCK_TIMEOUT_S:.0f} s"
        return InputError("locked_database", database_id, found, "Run again when that process is done.")
    if code in _NOT_ACCESSIBLE:
        remedy = "Check that the file is complete and readable, then run again."
        return InputError("unreadable_database", database_id, says, remedy)
    if code == sqlite3.SQLITE_ERROR:
        return InputError("odd_table", database_id, says, _ONLY_PROXIES)
    return InputError("damaged_database", database_id, says, _recovery())
