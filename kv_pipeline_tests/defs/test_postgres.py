"""Dagster's storage in PostgreSQL says what SQLite's says."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log.schema import DynamicPartitionsTable as _table  # noqa: N813

from kv_pipeline.defs.event_log import delete_dynamic_partitions, move_dynamic_partitions_to_end
from kv_pipeline.defs.instance import BROKER_VARIABLE, HOME_VARIABLE, POSTGRES_VARIABLE, open_instance
from kv_pipeline.defs.postgres import BatchedPostgresEventLogStorage, installed_url
from kv_pipeline_tests.defs.test_event_log import KEYS, run_range
from kv_pipeline_tests.services import postgres_database

N_OPENERS = 3


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres_database() as made:
        yield made


@pytest.fixture
def on_postgres(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    monkeypatch.delenv(BROKER_VARIABLE, raising=False)
    monkeypatch.setenv(POSTGRES_VARIABLE, url)
    with open_instance(tmp_path / "store") as instance:
        yield instance
        instance.wipe()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@h:1/d", "postgresql+psycopg2://u:p@h:1/d"),
        ("postgres://u@h/d?sslmode=require", "postgresql+psycopg2://u@h/d?sslmode=require"),
        ("postgresql+psycopg2://u@h/d", "postgresql+psycopg2://u@h/d"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://u:p%40%2F@h/d", "postgresql+psycopg2://u:p%40%2F@h/d"),
    ],
)
def test_urls_name_the_driver_that_is_installed(given: str, used: str) -> None:
    assert installed_url(given) == used


def test_a_run_is_recorded_as_on_sqlite(on_postgres: dg.DagsterInstance, tmp_path: Path) -> None:
    recorded = []
    with dg.DagsterInstance.local_temp(str(tmp_path)) as on_sqlite:
        for instance in (on_sqlite, on_postgres):
            result = run_range(instance)
            assert result.success
            key = dg.AssetKey("traces")
            (asset,) = instance.get_asset_records([key])
            latest = asset.asset_entry.last_materialization_record
            assert latest is not None
            records = instance.get_records_for_run(result.run_id).records
            recorded.append(
                {
                    "events": [(r.event_log_entry.dagster_event_type, r.event_log_entry.step_key) for r in records],
                    "partitions": instance.get_materialized_partitions(key),
                    "latest": (latest.partition_key, latest.run_id == result.run_id),
                    "keys": instance.get_dynamic_partitions("conversations"),
                }
            )
    assert recorded[0]["partitions"] == set(KEYS)
    assert recorded[0] == recorded[1]


def test_partition_keys_are_moved_and_deleted_together(on_postgres: dg.DagsterInstance) -> None:
    assert isinstance(on_postgres.event_log_storage, BatchedPostgresEventLogStorage)
    on_postgres.add_dynamic_partitions("conversations", KEYS[:4])
    on_postgres.add_dynamic_partitions("databases", KEYS[:2])
    move_dynamic_partitions_to_end(on_postgres, "conversations", [KEYS[2], "it's new", KEYS[0]])
    move_dynamic_partitions_to_end(on_postgres, "conversations", [])
    assert on_postgres.get_dynamic_partitions("conversations") == [KEYS[1], KEYS[3], KEYS[2], "it's new", KEYS[0]]
    delete_dynamic_partitions(on_postgres, "conversations", [*KEYS[1:], "unknown"])
    delete_dynamic_partitions(on_postgres, "conversations", [])
    assert on_postgres.get_dynamic_partitions("conversations") == ["it's new", KEYS[0]]
    assert on_postgres.get_dynamic_partitions("databases") == KEYS[:2]


def test_an_interrupted_move_keeps_every_key(on_postgres: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    on_postgres.add_dynamic_partitions("conversations", KEYS)

    class Interrupted:
        @staticmethod
        def insert() -> None:
            raise KeyboardInterrupt

        delete = staticmethod(_table.delete)
        c = _table.c

    monkeypatch.setattr("kv_pipeline.defs.postgres.DynamicPartitionsTable", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        move_dynamic_partitions_to_end(on_postgres, "conversations", KEYS[:3])
    assert on_postgres.get_dynamic_partitions("conversations") == KEYS


OPENER = """
import sys
import dagster as dg
from pathlib import Path
from kv_pipeline.defs import instance, postgres
print("ready", flush=True)
sys.stdin.readline()
with instance.open_instance(Path(sys.argv[1])) as opened:
    opened.add_dynamic_partitions("databases", [sys.argv[2]])
    print(opened.get_runs_count())
"""


def test_processes_that_open_an_empty_database_at_once(tmp_path: Path) -> None:
    with postgres_database() as url, ExitStack() as stack:
        openers = [stack.enter_context(opener(tmp_path / f"store-{n}", url)) for n in range(N_OPENERS)]
        assert [one.stdout.readline() for one in openers if one.stdout] == ["ready\n"] * N_OPENERS
        for one in openers:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        for one in openers:
            out, err = one.communicate(timeout=60)
            assert (one.returncode, out) == (0, "0\n"), err
            assert "Retrying" not in err


def opener(store: Path, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OPENER, str(store), store.name],
        env={**os.environ, POSTGRES_VARIABLE: url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_secrets_stay_in_the_environment(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    secret = url.replace("postgresql://postgres@", "postgresql://postgres:swordfish@")  # trusted all the same
    monkeypatch.setenv(POSTGRES_VARIABLE, secret)
    monkeypatch.setenv(BROKER_VARIABLE, "redis://:swordfish@127.0.0.1:1/0")
    with open_instance(tmp_path) as instance:
        reference = dg.serialize_value(instance.get_ref())
        assert instance.run_monitoring_enabled
    assert "swordfish" not in reference
    assert "swordfish" not in (tmp_path / "dagster/dagster.yaml").read_text()


def test_storage_follows_the_setting(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    monkeypatch.delenv(POSTGRES_VARIABLE, raising=False)
    config = tmp_path / "dagster/dagster.yaml"
    with open_instance(tmp_path) as instance:
        before = json.loads(config.read_text())
        assert not isinstance(instance.event_log_storage, BatchedPostgresEventLogStorage)
    monkeypatch.setenv(POSTGRES_VARIABLE, url)
    with open_instance(tmp_path) as instance:
        assert isinstance(instance.event_log_storage, BatchedPostgresEventLogStorage)
    monkeypatch.delenv(POSTGRES_VARIABLE)
    with open_instance(tmp_path):
        assert json.loads(config.read_text()) == before
