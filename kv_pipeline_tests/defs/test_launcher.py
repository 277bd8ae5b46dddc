"""Whether the process of a run is alive, on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus

from kv_pipeline.defs.instance import PROCESS_TAG, open_instance
from kv_pipeline.defs.launcher import MACHINE_TAG, WatchedRunLauncher
from kv_pipeline.processes import process_named, this_machine


@pytest.fixture
def dead() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def health(instance: dg.DagsterInstance, tags: dict[str, str], *processes: int) -> WorkerStatus:
    """What the launcher says of a run that began, and which processes said that they work on it."""
    run = instance.create_run_for_job(
        dg.job(name="nothing")(lambda: None), tags=tags, status=dg.DagsterRunStatus.STARTED
    )
    for process in processes:
        instance.report_engine_event(f"Started process for run (pid: {process}).", run)
    launcher = instance.run_launcher
    assert isinstance(launcher, WatchedRunLauncher)
    assert launcher.supports_check_run_worker_health
    return launcher.check_run_worker_health(run).status


def test_a_run_lives_as_long_as_its_process(tmp_path: Path, dead: int) -> None:
    here, parent = {MACHINE_TAG: this_machine()}, os.getppid()
    with open_instance(tmp_path) as instance:
        assert health(instance, here, dead) == WorkerStatus.FAILED
        assert health(instance, here, dead, parent) == WorkerStatus.RUNNING
        assert health(instance, here) == WorkerStatus.RUNNING
        assert health(instance, {MACHINE_TAG: "elsewhere"}, dead) == WorkerStatus.RUNNING
        assert health(instance, {}, dead) == WorkerStatus.RUNNING  # of another launcher
        assert health(instance, {PROCESS_TAG: process_named(dead, this_machine())}) == WorkerStatus.FAILED
        assert health(instance, {PROCESS_TAG: process_named(parent, this_machine())}) == WorkerStatus.RUNNING
        assert health(instance, {PROCESS_TAG: process_named(dead, "elsewhere")}) == WorkerStatus.RUNNING


def test_configurations_of_earlier_versions_are_renewed(tmp_path: Path) -> None:
    with open_instance(tmp_path):
        pass
    config = tmp_path / "dagster/dagster.yaml"
    wanted = json.loads(config.read_text())
    before = {name: value for name, value in wanted.items() if name not in {"run_launcher", "run_monitoring"}}
    assert before != wanted
    config.write_text(json.dumps(before, indent=1))
    with open_instance(tmp_path) as instance:
        assert instance.run_monitoring_enabled
    assert json.loads(config.read_text()) == wanted
