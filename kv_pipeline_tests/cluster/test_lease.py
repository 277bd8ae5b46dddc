"""Whether somebody works on a run, wherever it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus

from kv_pipeline.cluster.launcher import LeasedCeleryRunLauncher
from kv_pipeline.cluster.lease import is_leased, leased
from kv_pipeline.cluster.session import BatchSession
from kv_pipeline.cluster.work import LOST, work_on
from kv_pipeline.defs.instance import BROKER_VARIABLE, HOME_VARIABLE, POSTGRES_VARIABLE, PROCESS_TAG, open_instance
from kv_pipeline.errors import StoreError, UsageError
from kv_pipeline.store import Store
from kv_pipeline_tests.services import postgres_database

HOLDER = """
import sys, time
from pathlib import Path
from kv_pipeline.cluster.lease import leased
from kv_pipeline.defs.instance import open_instance
with open_instance(Path(sys.argv[1])) as instance, leased(instance, sys.argv[2]) as is_mine:
    print(is_mine, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres_database() as made:
        yield made


@pytest.fixture
def instance(url, tmp_path, monkeypatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    monkeypatch.setenv(POSTGRES_VARIABLE, url)
    monkeypatch.setenv(BROKER_VARIABLE, "redis://127.0.0.1:1/0")  # nobody listens there, and nobody is asked
    with open_instance(tmp_path) as opened:
        yield opened
        opened.wipe()


def made(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
    return instance.create_run_for_job(dg.job(name="nothing")(lambda: None), status=status, tags=tags)


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def test_one_process_has_a_lease(instance):
    with leased(instance, "one") as first, leased(instance, "one") as second, leased(instance, "two") as other:
        assert (first, second, other) == (True, False, True)
        assert is_leased(instance, "one")
    assert not is_leased(instance, "one")


def test_a_killed_process_has_no_lease(instance, tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "one"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert is_leased(instance, "one")
        holder.kill()
    assert not is_leased(instance, "one")


def test_the_launcher_knows_a_lost_worker(instance):
    launcher = instance.run_launcher
    assert isinstance(launcher, LeasedCeleryRunLauncher)
    assert launcher.supports_check_run_worker_health
    run = made(instance, dg.DagsterRunStatus.STARTED)
    with leased(instance, run.run_id):
        assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    assert launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
    of_a_command = made(instance, dg.DagsterRunStatus.STARTED, **{PROCESS_TAG: "1@elsewhere"})
    assert launcher.check_run_worker_health(of_a_command).status == WorkerStatus.RUNNING


def test_a_run_that_another_worker_has_is_left_alone(instance):
    run = made(instance, dg.DagsterRunStatus.STARTED)
    with leased(instance, run.run_id):
        work_on(instance, run.run_id)
    assert status_of(instance, run) == dg.DagsterRunStatus.STARTED


def test_a_run_of_a_lost_worker_has_failed(instance):
    run = made(instance, dg.DagsterRunStatus.STARTED)
    work_on(instance, run.run_id)
    assert status_of(instance, run) == dg.DagsterRunStatus.FAILURE
    (event,) = instance.all_logs(run.run_id, dg.DagsterEventType.RUN_FAILURE)
    assert event.get_dagster_event().message == LOST


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED])
def test_a_run_that_has_ended_stays_as_it_is(instance, status):
    run = made(instance, status)
    work_on(instance, run.run_id)
    assert status_of(instance, run) == status
    assert not is_leased(instance, run.run_id)


def test_a_run_that_was_deleted_is_no_matter(instance):
    work_on(instance, "11111111-1111-1111-1111-111111111111")
    assert instance.get_runs_count() == 0


def test_without_a_shared_instance_there_are_no_workers(tmp_path, monkeypatch):
    for name in (HOME_VARIABLE, POSTGRES_VARIABLE, BROKER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    store = Store.open(tmp_path / "store")
    with pytest.raises(UsageError, match=POSTGRES_VARIABLE), BatchSession.open(store, tmp_path, 10):
        pass
    with open_instance(tmp_path / "store") as instance, pytest.raises(UsageError), leased(instance, "one"):
        pass


def test_a_broker_that_is_not_there_is_said_plainly(instance, tmp_path):
    store = Store.open(tmp_path)
    with store.writing(), BatchSession.open(store, tmp_path, 10) as session:
        with pytest.raises(StoreError, match="broker"):
            session.run_conversations(["ada/one"])
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.FAILURE]
