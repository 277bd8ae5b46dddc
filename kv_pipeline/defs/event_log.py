"""Event log storage that writes a batch of events in one transaction.

Belongs here: how Dagster's events and dynamic partition keys reach SQLite. Does not belong here: what the events say
(that is the assets' business), where the instance lives, and PostgreSQL (`defs/postgres.py`).

Dagster's SQLite storage takes a batch as a loop over single events, each with four or more connections and
two fsyncs: 18-27 ms per conversation and asset, a minute of bookkeeping for 1,000 conversations and three
assets. Read only by ``dagster.yaml``::

    event_log_storage:
      module: kv_pipeline.defs.event_log
      class: BatchedSqliteEventLogStorage
      config: {base_dir: ...}

Batches form only when the variables in ``EVENT_ENVIRONMENT`` are set, so opening the storage sets them: every
process that opens the instance (command line, webserver, daemon, code server, run worker) has them in time.

Source: dagster 1.13.27, ``dagster/_core/storage/event_log/sqlite/sqlite_event_log.py`` (``store_event``) and
``dagster/_core/instance/methods/event_methods.py`` (``handle_new_event``).
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, Self, runtime_checkable

from dagster import DagsterInstance
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import DynamicPartitionsTable, SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

EVENT_ENVIRONMENT: Mapping[str, str] = {
    # Materializations of one step are handed over in groups of this size; unset means one by one.
    "DAGSTER_EVENT_BATCH_SIZE": "1000",
    # One planned event per asset instead of one per partition. The price: when a range run fails, its
    # partitions are not shown as failed, only as still missing.
    "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
}
"""Variables that make Dagster form batches. It reads them at each event, not at import."""

MIRRORED_EVENTS = frozenset({*ASSET_EVENTS, *ASSET_CHECK_EVENTS, *EVENT_TYPE_TO_PIPELINE_RUN_STATUS})
"""Event types that are also written to the index shard, where queries across runs look."""


def prepare_environment() -> None:
    """Set ``EVENT_ENVIRONMENT`` for this process and its children, keeping what the user has set."""
    for name, value in EVENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@runtime_checkable
class ManyPartitions(Protocol):
    """An event log storage that changes many dynamic partition keys in one transaction."""

    def delete_dynamic_partitions(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """Delete partition keys; unknown ones are ignored."""

    def move_dynamic_partitions_to_end(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """Make keys the last ones of a definition, in the order given, adding those that are new."""


class BatchedSqliteEventLogStorage(SqliteEventLogStorage):
    """Dagster's SQLite event log with ``store_event_batch`` as one transaction per shard database.

    Same files, tables, ids and cursors as the parent: an instance can switch between the two at any time.
    A batch is all or nothing when a write fails. Two databases cannot commit as one, so a process that dies
    between the two commits leaves the run's own log with events the index lacks: those partitions count as
    missing and are computed again, never the reverse.

    Args:
        base_dir: Folder of the shard databases, one per run and ``index.db``.
        inst_data: How the instance was configured; Dagster passes it to rebuild the storage elsewhere.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        prepare_environment()
        self._held = threading.local()
        super().__init__(base_dir, inst_data)
        # Reentrant, because a batch holds a connection to each of two shards.
        self._db_lock = threading.RLock()  # type: ignore[assignment]

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Build the storage from its ``config`` block (the parent would build itself, not ``cls``)."""
        return cls(inst_data=inst_data, **config_value)

    def index_connection(self) -> AbstractContextManager[Connection]:
        """Connect to the index shard, or join the transaction this thread holds on it."""
        connection: Connection | None = getattr(self._held, "connection", None)
        return super().index_connection() if connection is None else nullcontext(connection)

    @contextmanager
    def _holding_index(self) -> Iterator[Connection]:
        """Hold one transaction on the index shard that every method called inside takes part in."""
        with super().index_connection() as connection:
            self._held.connection = connection
            try:
                yield connection
            finally:
                del self._held.connection

    def store_event(self, event: EventLogEntry) -> None:
        """Store one event: a batch of one."""
        self.store_event_batch([event])

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events in order, all or none, in one transaction per shard database."""
        rows = [self._event_to_row(event) for event in events]
        mirrored = [number for number, event in enumerate(events) if _is_mirrored(event)]
        # A failing write rolls every shard back. Commits run innermost first: the run's log, then the index.
        with ExitStack() as stack:
            index = stack.enter_context(self._holding_index()) if mirrored else None
            for run_id in dict.fromkeys(event.run_id for event in events):
                run_shard = stack.enter_context(self.run_connection(run_id))
                run_shard.execute(SqlEventLogStorageTable.insert(), [row for row in rows if row["run_id"] == run_id])
            if index is not None:
                self._mirror(index, [events[n] for n in mirrored], [rows[n] for n in mirrored])

    def _mirror(self, index: Connection, events: Sequence[EventLogEntry], rows: Sequence[dict[str, Any]]) -> None:
        """Write events to the index shard, with the tags, latest asset state and checks derived from them."""
        insert = SqlEventLogStorageTable.insert().returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
        stored = list(zip(events, index.execute(insert, rows).scalars(), strict=True))
        asset_events = [(event, row_id) for event, row_id in stored if event.dagster_event_type in ASSET_EVENTS]
        self._store_asset_event_tags(index, *_unzip(asset_events))
        for event, row_id in _last_of_each_kind(asset_events):
            self._store_asset_event(index, event, row_id)
        for event, row_id in stored:
            if event.dagster_event_type in ASSET_CHECK_EVENTS:
                self.store_asset_check_event(event, row_id)

    def delete_dynamic_partitions(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """Delete many partition keys in one transaction; unknown keys are ignored."""
        if not partition_keys:
            return
        table = DynamicPartitionsTable.c
        statement = DynamicPartitionsTable.delete().where(
            table.partitions_def_name == bindparam("name"), table.partition == bindparam("key")
        )
        with self.index_connection() as index:
            index.execute(statement, [{"name": partitions_def_name, "key": key} for key in partition_keys])

    def move_dynamic_partitions_to_end(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """Make keys the last ones of a definition, in the order given, adding those that are new."""
        with self._holding_index():
            self.delete_dynamic_partitions(partitions_def_name, partition_keys)
            self.add_dynamic_partitions(partitions_def_name, partition_keys)


def delete_dynamic_partitions(
    instance: DagsterInstance, partitions_def_name: str, partition_keys: Sequence[str]
) -> None:
    """Delete partition keys: one transaction where the instance's storage offers it, else one per key.

    Args:
        instance: Any Dagster instance.
        partitions_def_name: Name of the dynamic partitions definition.
        partition_keys: Keys to delete; unknown ones are ignored.
    """
    storage = instance.event_log_storage
    if isinstance(storage, ManyPartitions):
        storage.delete_dynamic_partitions(partitions_def_name, partition_keys)
        return
    for key in partition_keys:
        instance.delete_dynamic_partition(partitions_def_name, key)


def move_dynamic_partitions_to_end(
    instance: DagsterInstance, partitions_def_name: str, partition_keys: Sequence[str]
) -> None:
    """Make keys the contiguous tail of a definition, so that one range run covers exactly them.

    A crash in between loses no key where the instance's storage is ours; with any other storage it can.

    Args:
        instance: Any Dagster instance.
        partitions_def_name: Name of the dynamic partitions definition.
        partition_keys: Keys in their new order; those that are new are added.
    """
    storage = instance.event_log_storage
    if isinstance(storage, ManyPartitions):
        storage.move_dynamic_partitions_to_end(partitions_def_name, partition_keys)
        return
    delete_dynamic_partitions(instance, partitions_def_name, partition_keys)
    instance.add_dynamic_partitions(partitions_def_name, partition_keys)


def _is_mirrored(event: EventLogEntry) -> bool:
    return event.is_dagster_event and event.dagster_event_type in MIRRORED_EVENTS


def _unzip(stored: Sequence[tuple[EventLogEntry, int]]) -> tuple[list[EventLogEntry], list[int]]:
    return [event for event, _ in stored], [row_id for _, row_id in stored]


def _last_of_each_kind(stored: Sequence[tuple[EventLogEntry, int]]) -> list[tuple[EventLogEntry, int]]:
    """Keep, in order, the last event of each type for each asset.

    Each type always writes the same columns of its asset's row in ``asset_keys``, so applying only these
    leaves the row as applying every event would, without writing it once per partition.
    """
    last = {(event.dagster_event_type, event.get_dagster_event().asset_key): n for n, (event, _) in enumerate(stored)}
    return [stored[n] for n in sorted(last.values())]
