"""Two workers, one of which is killed in the middle: the same tables, bit for bit."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kv_pipeline.defs.instance import POSTGRES_VARIABLE, open_instance
from kv_pipeline.defs.partitions import RANGE_START
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store
from kv_pipeline.store_settings import SALT_VARIABLE
from kv_pipeline_tests.cluster.conftest import SALT, Cluster, kill
from kv_pipeline_tests.services import RABBITMQ, REDIS

EXAMPLE = Path(__file__).parents[2] / "data/example"
PATIENCE_S = 120
NOTICED_WITHIN_S = 60


def tables(store: Path) -> dict[str, bytes]:
    """Tables and states, by name."""
    paths = [*store.rglob("*.parquet"), *(store / "state").glob("*.json")]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def wait_for(what: Callable[[], Sequence[Any]], cluster: Cluster) -> Sequence[Any]:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("\n".join(cluster.log(path.stem) for path in cluster.folder.glob("*.log")))


@contextmanager
def opening_held(store: Path) -> Iterator[None]:
    """Nobody can open the store meanwhile: a run that begins waits in the middle."""
    with (store / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pid_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int:
    events = instance.all_logs(run.run_id, dg.DagsterEventType.ENGINE_EVENT)
    messages = [entry.get_dagster_event().message or "" for entry in events]
    (pid,) = {match for message in messages for match in re.findall(r"pid: (\d+)", message)}
    return int(pid)


def worker_of(pid: int, workers: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    (found,) = [worker for worker in workers if worker.pid == os.getpgid(pid)]
    return found


@pytest.mark.parametrize("broker", [RABBITMQ, REDIS], ids=["rabbitmq", "redis"])
def test_a_killed_worker_costs_a_retry(cluster_on, broker, tmp_path, monkeypatch):
    cluster = cluster_on(broker)
    inbox, store = tmp_path / "inbox", tmp_path / "store"
    shutil.copytree(EXAMPLE, inbox)
    monkeypatch.setenv(SALT_VARIABLE, SALT)
    expected = Store.open(tmp_path / "expected")
    bring_up_to_date(expected, Inputs(inbox))
    Store.open(store)
    monkeypatch.setenv(POSTGRES_VARIABLE, cluster.environment[POSTGRES_VARIABLE])
    monkeypatch.setenv("KV_PIPELINE_BROKER_URL", broker)
    with (
        open_instance(store) as instance,
        cluster.process("a", "worker", "--inbox", inbox, "--store", store, "--name", "a") as a,
        cluster.process("b", "worker", "--inbox", inbox, "--store", store, "--name", "b") as b,
        cluster.process(
            "run", "run", "--engine", "celery", "--batch-size", "4", "--inbox", inbox, "--store", store
        ) as command,
    ):

        def runs(*statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
            return instance.get_runs(dg.RunsFilter(job_name="make_conversations", statuses=list(statuses)))

        wait_for(runs, cluster)
        with opening_held(store):
            lost = wait_for(lambda: runs(dg.DagsterRunStatus.STARTED), cluster)[0]
            dead = worker_of(pid_of(instance, lost), [a, b])
            kill(dead)
            killed_at = time.time()
        assert command.wait(PATIENCE_S) == 0, cluster.log("run")
        failed = instance.get_run_records(dg.RunsFilter(run_ids=[lost.run_id]))[0]
        again = [run for run in runs() if run.tags[RANGE_START] == lost.tags[RANGE_START]]
        (retry,) = [run for run in again if run.run_id != lost.run_id]
        assert worker_of(pid_of(instance, retry), [a, b]) is not dead
    assert failed.dagster_run.status == dg.DagsterRunStatus.FAILURE
    assert failed.end_time - killed_at < NOTICED_WITHIN_S
    assert sorted(run.status.value for run in again) == ["FAILURE", "SUCCESS"]
    assert tables(store) == tables(expected.root)
