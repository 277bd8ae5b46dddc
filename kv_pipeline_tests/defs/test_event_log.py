"""The batched event log stores what Dagster's own stores, byte for byte."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events.log import EventLogEntry
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from kv_pipeline.defs.event_log import (
    EVENT_ENVIRONMENT,
    BatchedSqliteEventLogStorage,
    delete_dynamic_partitions,
    move_dynamic_partitions_to_end,
    prepare_environment,
)

CONVERSATIONS = dg.DynamicPartitionsDefinition(name="conversations")
KEYS = [f"conversation-{number:02d}" for number in range(25)]
BATCH_SIZE = 10  # does not divide 25: the last batch of a step is a partial one
REPOSITORY = Path(__file__).parents[2]
SINGLE_RUN = dg.BackfillPolicy.single_run()
EVENT_LOG_CONFIG = {"module": "kv_pipeline.defs.event_log", "class": "BatchedSqliteEventLogStorage"}


@dg.asset(partitions_def=CONVERSATIONS, backfill_policy=SINGLE_RUN)
def blocks(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"keys": len(context.partition_keys)})


@dg.asset(partitions_def=CONVERSATIONS, backfill_policy=SINGLE_RUN, deps=[blocks])
def traces() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(data_version=dg.DataVersion("traces-1"))


@dg.asset_check(asset=traces, blocking=True)
def traces_are_sound() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.asset(deps=[traces])
def report() -> None: ...


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", str(BATCH_SIZE))
    monkeypatch.setenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")


@contextmanager
def open_instance(home: Path, *, batched: bool) -> Iterator[dg.DagsterInstance]:
    home.mkdir(exist_ok=True)
    overrides: dict[str, Any] = {"telemetry": {"enabled": False}}
    if batched:
        overrides["event_log_storage"] = {
            **EVENT_LOG_CONFIG,
            "config": {"base_dir": str(home / "history/runs")},
        }
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=overrides)) as instance:
        yield instance


def run_range(instance: dg.DagsterInstance, keys: Sequence[str] = KEYS) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions("conversations", keys)
    return dg.materialize(
        [blocks, traces, traces_are_sound, report],
        instance=instance,
        tags={"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def record_events(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> list[list[EventLogEntry]]:
    """Record what Dagster hands to the storage, call by call."""
    calls: list[list[EventLogEntry]] = []
    storage = instance.event_log_storage
    store_event = storage.store_event

    def record(events: list[EventLogEntry]) -> None:
        calls.append(events)
        for event in events:
            store_event(event)

    monkeypatch.setattr(storage, "store_event", lambda event: record([event]))
    monkeypatch.setattr(storage, "store_event_batch", record)
    return calls


def replay(calls: list[list[EventLogEntry]], storage: SqliteEventLogStorage) -> None:
    for events in calls:
        if len(events) == 1:
            storage.store_event(events[0])
        else:
            storage.store_event_batch(events)


def dump(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table of every shard, without the times at which rows were inserted."""
    tables: dict[str, list[tuple[object, ...]]] = {}
    for path in sorted(folder.glob("*.db")):
        with closing(sqlite3.connect(path)) as connection:
            connection.row_factory = sqlite3.Row
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                rows = [dict(row) for row in connection.execute(f"SELECT * FROM {name} ORDER BY 1")]
                tables[f"{path.name}:{name}"] = [
                    tuple(v for k, v in row.items() if k not in {"create_timestamp", "migration_completed"})
                    for row in rows
                ]
    return tables


def test_same_rows_as_default_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_instance(tmp_path / "recorded", batched=False) as instance:
        calls = record_events(instance, monkeypatch)
        assert run_range(instance).success
    assert [len(events) for events in calls if len(events) > 1] == [4, 10, 10, 5, 10, 10, 5]

    default = SqliteEventLogStorage(str(tmp_path / "default"))
    batched = BatchedSqliteEventLogStorage(str(tmp_path / "batched"))
    replay(calls, default)
    replay(calls, batched)

    rows = dump(tmp_path / "batched")
    assert rows == dump(tmp_path / "default")
    assert len(rows["index.db:event_logs"]) > 2 * len(KEYS)
    assert len(rows["index.db:asset_keys"]) == 3
    assert len(rows["index.db:asset_event_tags"]) == 2 * len(KEYS) + 1
    assert len(rows["index.db:asset_check_executions"]) >= 1


def read_back(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """Read one run's history the ways the UI and the daemon do."""
    key = dg.AssetKey("traces")
    pages = []
    cursor = None
    while True:
        page = instance.get_records_for_run(run_id, cursor=cursor, limit=7)
        pages.append(
            [(r.storage_id, r.event_log_entry.dagster_event_type, r.event_log_entry.step_key) for r in page.records]
        )
        cursor = page.cursor
        if not page.has_more:
            break
    found = instance.fetch_materializations(key, limit=9, ascending=True)
    rest = instance.fetch_materializations(key, limit=99, ascending=True, cursor=found.cursor)
    (asset,) = instance.get_asset_records([key])
    latest = asset.asset_entry.last_materialization_record
    planned = instance.get_latest_planned_materialization_info(key)
    assert latest is not None
    assert planned is not None
    return {
        "run": pages,
        "cursor": cursor,
        "materializations": [(r.storage_id, r.partition_key) for r in (*found.records, *rest.records)],
        "cursors": (found.cursor, rest.cursor, found.has_more, rest.has_more),
        "latest": (latest.storage_id, latest.partition_key, asset.asset_entry.last_run_id == run_id),
        "planned": planned.storage_id,
        "partitions": instance.get_materialized_partitions(key),
        "storage_ids": instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION),
        "keys": instance.get_dynamic_partitions("conversations"),
    }


def test_same_answers_as_default_storage(tmp_path: Path) -> None:
    answers = {}
    for batched in (False, True):
        with open_instance(tmp_path / str(batched), batched=batched) as instance:
            result = run_range(instance)
            assert result.success
            answers[batched] = read_back(instance, result.run_id)
    assert answers[True] == answers[False]
    assert answers[True]["partitions"] == set(KEYS)


def test_second_run_replaces_latest_materialization(tmp_path: Path) -> None:
    with open_instance(tmp_path / "home", batched=True) as instance:
        run_range(instance)
        second = run_range(instance, KEYS[:3])
        (asset,) = instance.get_asset_records([dg.AssetKey("traces")])
        (newest,) = instance.fetch_materializations(dg.AssetKey("traces"), limit=1).records
    assert asset.asset_entry.last_materialization_record == newest
    assert newest.run_id == asset.asset_entry.last_run_id == second.run_id


def materializations(count: int) -> list[EventLogEntry]:
    """Return recorded materialization events of one run, as Dagster would hand them over."""
    with dg.DagsterInstance.ephemeral() as instance:
        run_range(instance, KEYS[:count])
        return [
            record.event_log_entry
            for record in instance.fetch_materializations(dg.AssetKey("traces"), limit=count).records
        ]


def events_stored(folder: Path) -> dict[str, int]:
    return {name: len(rows) for name, rows in dump(folder).items() if name.endswith(":event_logs")}


@pytest.mark.parametrize("failing", ["_store_asset_event", "_store_asset_event_tags", "_event_to_row"])
def test_failing_batch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    events = materializations(5)
    storage = BatchedSqliteEventLogStorage(str(tmp_path))
    storage.store_event_batch(events[:2])
    before = dump(tmp_path)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(storage, failing, fail)
        with pytest.raises(sqlite3.OperationalError):
            storage.store_event_batch(events[2:])
    assert dump(tmp_path) == before

    storage.store_event_batch(events[2:])  # nothing is left locked or half done
    assert set(events_stored(tmp_path).values()) == {5}


def test_killed_process_leaves_nothing(tmp_path: Path) -> None:
    """A process that dies after all rows are written, before the commit, leaves no row of the batch."""
    events = materializations(5)
    storage = BatchedSqliteEventLogStorage(str(tmp_path / "log"))
    storage.store_event_batch(events[:2])
    before = dump(tmp_path / "log")
    (tmp_path / "events.json").write_text(json.dumps([dg.serialize_value(event) for event in events[2:]]))
    child = """
import json, os, sys
import dagster as dg
from kv_pipeline.defs import event_log
folder, path = sys.argv[1:]
storage = event_log.BatchedSqliteEventLogStorage(folder)
storage._store_asset_event = lambda *_: os._exit(9)
storage.store_event_batch([dg.deserialize_value(text) for text in json.load(open(path))])
"""
    finished = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path / "log"), str(tmp_path / "events.json")], check=False
    )
    assert finished.returncode == 9
    assert dump(tmp_path / "log") == before


def test_failed_batch_falls_back_to_single_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Dagster stores a failed batch again, event by event: no partition may then count twice."""
    with open_instance(tmp_path / "home", batched=True) as instance:
        storage = instance.event_log_storage
        assert isinstance(storage, BatchedSqliteEventLogStorage)
        mirror = storage._mirror

        def fail_on_batches(index: Any, events: Sequence[EventLogEntry], rows: Any) -> None:
            mirror(index, events, rows)
            if len(events) > 1:
                raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(storage, "_mirror", fail_on_batches)
        result = run_range(instance)
        found = instance.fetch_materializations(dg.AssetKey("traces"), limit=99).records
        logged = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert sorted(record.partition_key or "" for record in found) == KEYS
    assert len(logged) == 2 * len(KEYS) + 1
    assert "Falling back" in capfd.readouterr().err


def test_instance_round_trip(tmp_path: Path) -> None:
    configuration = {
        "telemetry": {"enabled": False},
        "event_log_storage": {**EVENT_LOG_CONFIG, "config": {"base_dir": str(tmp_path / "events")}},
    }
    (tmp_path / "dagster.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.event_log_storage, BatchedSqliteEventLogStorage)
        run_range(instance)
        reference = dg.deserialize_value(dg.serialize_value(instance.get_ref()), InstanceRef)
    with dg.DagsterInstance.from_ref(reference) as copy:
        assert isinstance(copy.event_log_storage, BatchedSqliteEventLogStorage)
        assert copy.get_materialized_partitions(dg.AssetKey("traces")) == set(KEYS)


def test_repository_configuration_is_one_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``dagster dev`` opens in the repository is the instance whose home is data/store/dagster."""
    monkeypatch.chdir(tmp_path)
    temporary_home = tmp_path / "temporary"
    temporary_home.mkdir()
    development = InstanceRef.from_dir(str(temporary_home), config_dir=str(REPOSITORY))
    with dg.DagsterInstance.from_ref(development) as instance:
        assert isinstance(instance.event_log_storage, BatchedSqliteEventLogStorage)
        run_range(instance, KEYS[:3])
    with open_instance(tmp_path / "data/store/dagster", batched=True) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("traces")) == set(KEYS[:3])
        assert instance.get_runs_count() == 1
    assert list(temporary_home.iterdir()) == []


def test_storages_read_each_others_files(tmp_path: Path) -> None:
    with open_instance(tmp_path / "home", batched=False) as instance:
        run_range(instance, KEYS[:5])
    with open_instance(tmp_path / "home", batched=True) as instance:
        run_range(instance, KEYS[5:])
    with open_instance(tmp_path / "home", batched=False) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("traces")) == set(KEYS)


@pytest.mark.parametrize("batched", [True, False])
def test_delete_dynamic_partitions(tmp_path: Path, batched: bool) -> None:
    with open_instance(tmp_path / "home", batched=batched) as instance:
        instance.add_dynamic_partitions("conversations", KEYS)
        instance.add_dynamic_partitions("databases", KEYS[:2])
        delete_dynamic_partitions(instance, "conversations", [*KEYS[5:], "unknown"])
        delete_dynamic_partitions(instance, "conversations", [])
        assert instance.get_dynamic_partitions("conversations") == KEYS[:5]
        assert instance.get_dynamic_partitions("databases") == KEYS[:2]


@pytest.mark.parametrize("batched", [True, False])
def test_move_dynamic_partitions_to_end(tmp_path: Path, batched: bool) -> None:
    with open_instance(tmp_path / "home", batched=batched) as instance:
        instance.add_dynamic_partitions("conversations", KEYS[:4])
        move_dynamic_partitions_to_end(instance, "conversations", [KEYS[2], "new", KEYS[0]])
        assert instance.get_dynamic_partitions("conversations") == [KEYS[1], KEYS[3], KEYS[2], "new", KEYS[0]]


def test_interrupted_move_keeps_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_instance(tmp_path / "home", batched=True) as instance:
        instance.add_dynamic_partitions("conversations", KEYS)

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(instance.event_log_storage, "add_dynamic_partitions", fail)
        with pytest.raises(KeyboardInterrupt):
            move_dynamic_partitions_to_end(instance, "conversations", KEYS[:3])
        assert instance.get_dynamic_partitions("conversations") == KEYS


def test_prepare_environment_keeps_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "7")
    monkeypatch.delenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS")
    prepare_environment()
    assert {name: os.environ[name] for name in EVENT_ENVIRONMENT} == {
        "DAGSTER_EVENT_BATCH_SIZE": "7",
        "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
    }
