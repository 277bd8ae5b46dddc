"""Two workers, one of which is killed in the middle: the same tables, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kv_pipeline.defs.instance import HOME_VARIABLE, POSTGRES_VARIABLE, open_instance
from kv_pipeline.defs.partitions import RANGE_START
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store
from kv_pipeline.store_settings import SALT_VARIABLE
from kv_pipeline_tests.cluster.conftest import SALT, Cluster, kill
from kv_pipeline_tests.daemon import FAST, daemon, held, is_up_to_date, pid_of, switch_on
from kv_pipeline_tests.services import RABBITMQ, REDIS

EXAMPLE = Path(__file__).parents[2] / "data/example"
PATIENCE_S = 300
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
        with held(store, "lock"):
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


def test_runs_of_the_sensor_are_executed_by_workers_and_a_killed_one_costs_a_retry(cluster_on, tmp_path, monkeypatch):
    """The daemon of `deploy/celery` with the sensor switched on. Slow: a minute."""
    cluster = cluster_on(RABBITMQ)
    inbox, store = tmp_path / "inbox", tmp_path / "store"
    shutil.copytree(EXAMPLE / "grace", inbox / "grace")
    monkeypatch.setenv(SALT_VARIABLE, SALT)
    expected = Store.open(tmp_path / "expected")
    bring_up_to_date(expected, Inputs(inbox))
    Store.open(store)
    monkeypatch.setenv(POSTGRES_VARIABLE, cluster.environment[POSTGRES_VARIABLE])
    monkeypatch.setenv("KV_PIPELINE_BROKER_URL", RABBITMQ)
    places = {HOME_VARIABLE: store / "dagster", "KV_PIPELINE_INBOX": inbox, "KV_PIPELINE_STORE": store}
    variables = {**cluster.environment, **FAST, **{name: str(path) for name, path in places.items()}}

    def worker(name: str) -> AbstractContextManager[subprocess.Popen[str]]:
        return cluster.process(name, "worker", "--inbox", inbox, "--store", store, "--name", name)

    with open_instance(store) as instance, worker("a") as a, daemon(variables, tmp_path / "daemon.log"):

        def runs(job: str, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
            return instance.get_runs(dg.RunsFilter(job_name=job, statuses=list(statuses)))

        switch_on(variables)
        wait_for(lambda: runs("index_conversations"), cluster)
        with held(store):
            (lost,) = wait_for(lambda: runs("index_conversations", dg.DagsterRunStatus.STARTED), cluster)
            assert worker_of(pid_of(instance, lost), [a]) is a
            kill(a)
            killed_at = time.time()
        with worker("b") as b:
            wait_for(lambda: [True] if is_up_to_date(instance) else [], cluster)
            retries = runs("index_conversations", dg.DagsterRunStatus.SUCCESS)
            made = runs("make_conversations", dg.DagsterRunStatus.SUCCESS)
            assert {worker_of(pid_of(instance, run), [b]) for run in (*retries, *made)} == {b}
    assert lost.run_id in {run.parent_run_id for run in retries}  # the sensor may ask again, too
    assert {run.status.value for run in instance.get_runs()} == {"SUCCESS", "FAILURE"}
    failed = instance.get_run_records(dg.RunsFilter(run_ids=[lost.run_id]))[0]
    assert failed.end_time - killed_at < NOTICED_WITHIN_S
    assert tables(store) == tables(expected.root)
