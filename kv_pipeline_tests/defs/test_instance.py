import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from kv_pipeline.defs.instance import HOME_VARIABLE, PROCESS_TAG, fail_dead_runs, open_instance


@pytest.fixture
def dead_process() -> str:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return str(child.pid)


def started(instance: dg.DagsterInstance, tags: dict[str, str]) -> str:
    run = instance.create_run_for_job(dg.job(name="nothing")(lambda: None), tags=tags)
    instance.handle_new_event(
        dg.EventLogEntry(
            error_info=None,
            level=10,
            user_message="",
            run_id=run.run_id,
            timestamp=0.0,
            job_name="nothing",
            dagster_event=dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, "nothing"),
        )
    )
    return run.run_id


def test_only_runs_of_dead_processes_fail(tmp_path: Path, dead_process: str) -> None:
    with open_instance(tmp_path) as instance:
        dead = started(instance, {PROCESS_TAG: dead_process})
        alive = started(instance, {PROCESS_TAG: str(os.getppid())})
        not_ours = started(instance, {})
        assert fail_dead_runs(instance) == 1
        assert fail_dead_runs(instance) == 0
        statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {
        dead: dg.DagsterRunStatus.FAILURE,
        alive: dg.DagsterRunStatus.STARTED,
        not_ours: dg.DagsterRunStatus.STARTED,
    }


def test_home_variable_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    with open_instance(tmp_path / "store"):
        assert (tmp_path / "home/dagster.yaml").exists()
    assert not (tmp_path / "store").exists()


def test_configuration_of_the_user_is_kept(tmp_path: Path) -> None:
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster/dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with open_instance(tmp_path) as instance:
        assert instance.get_settings("telemetry") == {"enabled": False}
    assert (tmp_path / "dagster/dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_configuration_follows_a_store_that_was_moved(tmp_path: Path) -> None:
    with open_instance(tmp_path / "before"):
        pass
    (tmp_path / "before").rename(tmp_path / "after")
    with open_instance(tmp_path / "after"):
        text = (tmp_path / "after/dagster/dagster.yaml").read_text()
    assert str((tmp_path / "after/dagster/history/runs").resolve()) in text
    assert "before" not in text
