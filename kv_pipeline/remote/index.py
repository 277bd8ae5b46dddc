"""What a working copy knows of the bucket, in SQLite: several processes of a machine may use the copy at once."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from kv_pipeline.errors import StoreError

_LOCK_TIMEOUT_S: Final = 60.0
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS objects (name TEXT PRIMARY KEY, etag TEXT NOT NULL, stamp TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS copy (id TEXT NOT NULL);
"""
_AFTER_SLASH: Final = "0"
"""The character after the slash."""


class Row(NamedTuple):
    """What is known of an object.

    Attributes:
        etag: Of the object, when it was last heard of.
        stamp: Of the file here when it was the same as the object; None if the object was not fetched, so that what the
            bucket has counts; empty if the file was removed here.
    """

    etag: str
    stamp: str | None


class Index:
    """Objects by name.

    Args:
        path: The file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._connected() as database:
            database.executescript(_TABLES)
            database.execute("INSERT INTO copy SELECT ? WHERE NOT EXISTS (SELECT * FROM copy)", (uuid.uuid4().hex,))
            database.commit()
            ((self.copy_id,),) = database.execute("SELECT id FROM copy").fetchall()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)) as database:
                yield database
        except sqlite3.Error as error:
            remedy = "Check space and permissions, or delete its folder: it is a copy of what lies in the bucket"
            raise StoreError(f"{self._path} can't be used: {error}. {remedy}.") from error

    @contextmanager
    def changing(self) -> Iterator[Rows]:
        """Look and change, while no other process does."""
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            yield Rows(database)
            database.execute("COMMIT")

    def is_empty(self) -> bool:
        """Whether nothing was ever listed, or nothing was there."""
        with self._connected() as database:
            return database.execute("SELECT 1 FROM objects LIMIT 1").fetchone() is None

    def unfetched(self, folder: str = "") -> list[str]:
        """Names below a folder, or all, whose objects were not fetched, sorted."""
        below = (f"{folder}/", f"{folder}{_AFTER_SLASH}") if folder else ("", "\U0010ffff")
        with self._connected() as database:
            found = database.execute(
                "SELECT name FROM objects WHERE stamp IS NULL AND name >= ? AND name < ? ORDER BY name", below
            )
            return [name for (name,) in found]

    def unfetched_of(self, names: Iterable[str]) -> list[str]:
        """Those of these names whose objects were not fetched."""
        with self._connected() as database:
            query = "SELECT 1 FROM objects WHERE name = ? AND stamp IS NULL"
            return [name for name in names if database.execute(query, (name,)).fetchone()]


class Rows:
    """The rows of an index, in a transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def all(self) -> dict[str, Row]:
        """Every row, by name."""
        return {name: Row(*row) for name, *row in self._database.execute("SELECT name, etag, stamp FROM objects")}

    def get(self, name: str) -> Row | None:
        """A row, if there is one."""
        found = self._database.execute("SELECT etag, stamp FROM objects WHERE name = ?", (name,)).fetchone()
        return Row(*found) if found else None

    def set(self, name: str, row: Row) -> None:
        """Write a row."""
        self._database.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?)", (name, *row))

    def remove(self, name: str) -> None:
        """Remove a row."""
        self._database.execute("DELETE FROM objects WHERE name = ?", (name,))
