"""What a Dagster instance remembers of a user: partition keys, in its lists and in every record of what was done."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import dagster as dg

from kv_pipeline.defs.event_log import delete_dynamic_partitions
from kv_pipeline.defs.partitions import CONVERSATIONS, DATABASES

REMOVED: Final = "removed"
"""Stands in records of what was done for a key that is to be forgotten."""
_NAME: Final = r"[A-Za-z0-9_.%~+-]"
_LOCK_TIMEOUT_S: Final = 30.0


class Forgotten(NamedTuple):
    """What was removed of a user.

    Attributes:
        conversations: Their conversations that were listed as partitions.
        n_records: Records in which keys were replaced; None if the instance's storage is neither in SQLite files nor in
            PostgreSQL.
    """

    conversations: list[str]
    n_records: int | None


def forget_partitions(instance: dg.DagsterInstance, home: Path, user_id: str) -> Forgotten:
    """Remove a user's partitions from an instance, and their keys from its history.

    Args:
        instance: The instance.
        home: Its folder, where its storage is if that is SQLite.
        user_id: The user.
    """
    mine = list[str]()
    for definition in (DATABASES, CONVERSATIONS):  # those of the last are returned
        keys = instance.get_dynamic_partitions(str(definition.name))
        mine = [key for key in keys if key.partition("/")[0] == user_id]
        delete_dynamic_partitions(instance, str(definition.name), mine)
    counts = [scrub(path, user_id) for path in sorted(home.rglob("*.db"))]
    counts += [_scrub_postgres(url, user_id) for url in _postgres_urls(instance)]
    return Forgotten(mine, sum(counts) if counts else None)


def forget_all_partitions(instance: dg.DagsterInstance) -> None:
    """Empty the lists of partitions; a run registers again what there is."""
    for definition in (DATABASES, CONVERSATIONS):
        keys = instance.get_dynamic_partitions(str(definition.name))
        delete_dynamic_partitions(instance, str(definition.name), list(keys))


def scrub(path: Path, user_id: str) -> int:
    """Replace a user's partition keys wherever a SQLite file has text; returns how many cells."""
    key = re.compile(_key_pattern(user_id))
    with closing(sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S)) as database, database:
        return sum(_scrub_column(database, *column, user_id, key) for column in _text_columns(database))


def _key_pattern(user_id: str) -> str:
    """Matches a user's partition keys, in Python and in PostgreSQL."""
    return rf"(?<!{_NAME}){re.escape(user_id)}/{_NAME}[^\s\"'\\,\]\)]*"


def _postgres_urls(instance: dg.DagsterInstance) -> list[str]:
    """Databases that an instance keeps its records in, if they are PostgreSQL's."""
    storages = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    return sorted({url for storage in storages if isinstance(url := getattr(storage, "postgres_url", None), str)})


def _scrub_postgres(url: str, user_id: str) -> int:
    """As `scrub`, in those tables of a database that are Dagster's."""
    from kv_pipeline.defs.postgres import replace_in_records

    return replace_in_records(url, f"{user_id}/", _key_pattern(user_id), REMOVED)


def _text_columns(database: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%VIRTUAL%'")
    for (table,) in tables.fetchall():
        for _, name, kind, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
            if any(word in kind.upper() for word in ("CHAR", "TEXT")):
                yield table, name


def _scrub_column(database: sqlite3.Connection, table: str, column: str, user_id: str, key: re.Pattern[str]) -> int:
    query = f'SELECT rowid, "{column}" FROM "{table}" WHERE instr("{column}", ?)'
    found = [row for row in database.execute(query, (f"{user_id}/",)) if isinstance(row[1], str) and key.search(row[1])]
    changed = [(key.sub(REMOVED, text), row_id) for row_id, text in found]
    database.executemany(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', changed)
    return len(changed)
