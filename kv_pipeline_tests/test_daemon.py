"""Dagster's daemon and everything that it started, killed while a run of the sensor is going. Slow: half a minute."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kv_pipeline.defs.instance import HOME_VARIABLE, open_instance
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store
from kv_pipeline_tests.daemon import (
    FAST,
    daemon,
    held,
    is_up_to_date,
    kill_group,
    pid_of,
    switch_on,
    wait_for,
)
from kv_pipeline_tests.test_crash import assert_same, contents
from kv_pipeline_tests.upkeep.conftest import EXAMPLE

SALT = "daemon"
STARTED, SUCCESS, FAILURE = (dg.DagsterRunStatus[name] for name in ("STARTED", "SUCCESS", "FAILURE"))


def environment(inbox: Path, store: Path) -> dict[str, str]:
    places = {
        HOME_VARIABLE: str(store / "dagster"),
        "KV_PIPELINE_INBOX": str(inbox),
        "KV_PIPELINE_STORE": str(store),
    }
    return {**os.environ, **FAST, **places}


def test_a_daemon_killed_alone_and_with_everything_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KV_PIPELINE_SALT", SALT)
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    inbox, store, log = tmp_path / "inbox", tmp_path / "store", tmp_path / "daemon.log"
    shutil.copytree(EXAMPLE / "grace", inbox / "grace")
    bring_up_to_date(Store.open(tmp_path / "clean"), Inputs(inbox))
    expected: dict[str, Any] = contents(tmp_path / "clean")
    Store.open(store)
    variables = environment(inbox, store)
    with open_instance(store) as instance:

        def runs(job: str, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
            return list(instance.get_runs(dg.RunsFilter(job_name=job, statuses=list(statuses))))

        def begun(job: str) -> dg.DagsterRun:
            return wait_for(lambda: runs(job, STARTED), log)[0]

        switch_on(variables)
        with daemon(variables, log) as first:
            wait_for(lambda: runs("ingest_databases"), log)
            with held(store):
                orphan = begun("ingest_databases")
                first.kill()
                first.wait()
            wait_for(lambda: runs("ingest_databases", SUCCESS), log)  # the run itself went on
            with daemon(variables, log) as second:
                wait_for(lambda: runs("index_conversations"), log)
                with held(store):
                    lost = begun("index_conversations")
                    assert os.getpgid(pid_of(instance, lost)) == second.pid
                    left = store / "traces" / "grace" / f".tmp-{pid_of(instance, lost)}-x.parquet"
                    left.parent.mkdir(parents=True)
                    left.touch()
                    kill_group(second)
                    second.wait()
                assert runs("index_conversations", STARTED)
                with daemon(variables, log):
                    wait_for(lambda: is_up_to_date(instance), log)
        assert [run.run_id for run in runs("ingest_databases", SUCCESS)] == [orphan.run_id]
        assert [run.run_id for run in runs("index_conversations", FAILURE)] == [lost.run_id]
        assert len(runs("index_conversations", SUCCESS)) == 1
        assert {run.status for run in instance.get_runs()} == {SUCCESS, FAILURE}
    assert_same(contents(store), expected, "after kills of the daemon")
    assert not list(store.rglob(".tmp-*"))
