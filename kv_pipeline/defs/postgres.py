"""Dagster's storage in PostgreSQL: what several machines share, and what many conversations need.

Belongs here: what dagster-postgres leaves to its user. Does not belong here: where the server is, which only the
environment says. Read only by ``dagster.yaml``::

    storage:
      custom:
        module: kv_pipeline.defs.postgres
        class: PostgresStorage
        config: {postgres_url: {env: KV_PIPELINE_POSTGRES_URL}}

Tables are dagster-postgres's own: an instance can switch between its storage and this one at any time.

Source: dagster-postgres 0.29.27, ``storage.py`` and ``event_log/event_log.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

import sqlalchemy
from dagster import Field, StringSource
from dagster._core.storage.event_log.schema import DynamicPartitionsTable, SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.pool import NullPool

from kv_pipeline.defs.event_log import prepare_environment

URL_VARIABLE: Final = "KV_PIPELINE_POSTGRES_URL"
_DRIVER: Final = "postgresql+psycopg2"
_FIRST_USE_LOCK: Final = 0x6B76_7069_7065  # any constant of ours; advisory locks are the database's own


def installed_url(url: str) -> str:
    """A PostgreSQL URL with the driver that dagster-postgres installs.

    SQLAlchemy 2.1 takes `postgresql://` for psycopg 3, which is not there; `postgres://` it doesn't take at all.
    """
    parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    named = parsed.set(drivername=_DRIVER) if parsed.drivername == "postgresql" else parsed
    return named.render_as_string(hide_password=False)


@contextmanager
def connected(url: str, **options: object) -> Iterator[Connection]:
    """A connection of its own, closed at the end; every statement is a transaction."""
    engine = sqlalchemy.create_engine(
        installed_url(url), isolation_level="AUTOCOMMIT", poolclass=NullPool, connect_args=dict(options)
    )
    with engine.connect() as connection:
        yield connection


class BatchedPostgresEventLogStorage(PostgresEventLogStorage):
    """dagster-postgres's event log, which changes many partition keys in one transaction instead of one key in each."""

    def delete_dynamic_partitions(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """Delete many partition keys; unknown keys are ignored."""
        if partition_keys:
            with self.index_transaction() as connection:
                _delete(connection, partitions_def_name, partition_keys)

    def move_dynamic_partitions_to_end(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """Make keys the last ones of a definition, in the order given, adding those that are new."""
        if not partition_keys:
            return
        rows = [{"partitions_def_name": partitions_def_name, "partition": key} for key in partition_keys]
        with self.index_transaction() as connection:
            _delete(connection, partitions_def_name, partition_keys)
            connection.execute(DynamicPartitionsTable.insert(), rows)


class PostgresStorage(DagsterPostgresStorage):
    """Runs, events and schedules in one PostgreSQL database.

    Processes that open an empty database at the same time make its tables one after the other; dagster-postgres alone
    lets them collide and try again. Opening it sets the variables that make Dagster write events in batches.

    Args:
        postgres_url: `postgresql://user:password@host:port/database`.
        inst_data: How the instance was configured; Dagster passes it to rebuild the storage elsewhere.
    """

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        prepare_environment()
        url = installed_url(postgres_url)
        with connected(url) as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _FIRST_USE_LOCK})
            super().__init__(url, inst_data=inst_data)
            self._event_log_storage = BatchedPostgresEventLogStorage(url)

    @classmethod
    def config_type(cls) -> dict[str, Field]:
        """One setting, which may name a variable of the environment."""
        return {"postgres_url": Field(StringSource, is_required=True)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Build the storage from its ``config`` block."""
        return cls(config_value["postgres_url"], inst_data)


def replace_in_records(url: str, part: str, pattern: str, replacement: str) -> int:
    """Replace what matches a pattern in every text that Dagster keeps in a database, in one transaction.

    Args:
        url: The database. Tables in it that are not Dagster's are left alone.
        part: What every match contains; looked for first.
        pattern: Regular expression of PostgreSQL.
        replacement: What is put in place of a match.

    Returns:
        How many cells were changed.
    """
    engine = sqlalchemy.create_engine(installed_url(url), poolclass=NullPool)
    with engine.begin() as connection:
        there = set(sqlalchemy.inspect(connection).get_table_names())
        columns = [column for column in _text_columns() if column.table.name in there]
        return sum(_replace_in(connection, column, part, pattern, replacement) for column in columns)


def _text_columns() -> Iterator[sqlalchemy.Column[Any]]:
    for metadata in (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata):
        for table in metadata.sorted_tables:
            yield from (column for column in table.columns if isinstance(column.type, sqlalchemy.String))


def _replace_in(
    connection: Connection, column: sqlalchemy.Column[Any], part: str, pattern: str, replacement: str
) -> int:
    found = (sqlalchemy.func.strpos(column, part) > 0) & column.regexp_match(pattern)
    replaced = sqlalchemy.func.regexp_replace(column, pattern, replacement, "g")
    return connection.execute(column.table.update().where(found).values({column: replaced})).rowcount


def _delete(connection: Connection, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
    table = DynamicPartitionsTable.c
    wanted = (table.partitions_def_name == partitions_def_name) & table.partition.in_(partition_keys)
    connection.execute(DynamicPartitionsTable.delete().where(wanted))
