"""The Dagster instance that belongs to a store: `<store>/dagster`, or DAGSTER_HOME if the user set one.

It is made of SQLite files there; of a PostgreSQL database if `KV_PIPELINE_POSTGRES_URL` is set; and runs go to Celery
workers if `KV_PIPELINE_BROKER_URL` is set too. The URLs are secrets: the configuration names the variables only.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import dagster as dg

from kv_pipeline.errors import needs_extra
from kv_pipeline.processes import is_other_alive

HOME_VARIABLE: Final = "DAGSTER_HOME"
POSTGRES_VARIABLE: Final = "KV_PIPELINE_POSTGRES_URL"
BROKER_VARIABLE: Final = "KV_PIPELINE_BROKER_URL"
PROCESS_TAG: Final = "kv_pipeline/process"
"""Tag of runs made in process by the command line: the process that works on it."""
_LONGEST_WAIT_S: Final = 86_400
"""After which a run that no worker took is marked as failed."""
_BEGUN: Final = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


def open_instance(store: Path) -> dg.DagsterInstance:
    """Open, or make, the instance for a store.

    The files are those that the repository's dagster.yaml names for the default store, so the UI started there shows
    what the command line materialized.
    """
    home = home_of(store)
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    with (home / ".lock").open("w") as lock:
        # Two processes that initialise one SQLite home at once break each other's migration.
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = json.dumps(_configuration(home), indent=1)  # JSON is YAML
        if not config.exists() or (_is_ours(config) and config.read_text() != wanted):
            temporary = config.with_suffix(".tmp")
            temporary.write_text(wanted)
            temporary.replace(config)
        return dg.DagsterInstance.from_config(str(home))


def home_of(store: Path) -> Path:
    """Folder of the instance for a store."""
    return Path(os.environ.get(HOME_VARIABLE) or store / "dagster").resolve()


def fail_dead_runs(instance: dg.DagsterInstance) -> int:
    """Mark runs of killed command lines as failed, which nobody else would; returns how many.

    Those of other machines are for these to judge.
    """
    begun = instance.get_runs(dg.RunsFilter(statuses=_BEGUN))
    dead = [run for run in begun if PROCESS_TAG in run.tags and is_other_alive(run.tags[PROCESS_TAG]) is False]
    for run in dead:
        instance.report_run_failed(run, "The process that worked on it died.")
    return len(dead)


def fail_begun_runs(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> int:
    """Mark runs with tags as failed that have not ended; returns how many."""
    begun = instance.get_runs(dg.RunsFilter(statuses=_BEGUN, tags=dict(tags)))
    for run in begun:
        instance.report_run_failed(run, "The command that launched it is gone.")
    return len(begun)


def _is_ours(config: Path) -> bool:
    """Whether a configuration is as we wrote it, if for another folder or storage; the user's own is kept."""
    try:
        found = json.loads(config.read_text())
    except ValueError:
        return False
    log = found.get("event_log_storage", {}) if isinstance(found, dict) else {}
    folder = log.get("config", {}).get("base_dir") if isinstance(log, dict) else None
    home = Path(folder).parents[1] if isinstance(folder, str) else config.parent
    now = (_on_sqlite(home), _on_postgres(), _on_workers())
    return found in (*now, *map(_of_earlier_version, now))


def _of_earlier_version(configuration: dict[str, Any]) -> dict[str, Any]:
    if "run_retries" in configuration:
        return configuration | {"run_monitoring": configuration["run_monitoring"] | {"start_timeout_seconds": 0}}
    return {name: value for name, value in configuration.items() if name not in _WATCHED}


def _configuration(home: Path) -> dict[str, Any]:
    if not os.environ.get(POSTGRES_VARIABLE):
        return _on_sqlite(home)
    needs_extra("dagster_postgres", "cluster", POSTGRES_VARIABLE)
    return _on_workers() if os.environ.get(BROKER_VARIABLE) else _on_postgres()


_COMMON: Final[dict[str, Any]] = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    # Capturing would redirect standard output away from the progress display.
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    },
}


_WATCHED: Final[dict[str, Any]] = {
    "run_launcher": {"module": "kv_pipeline.defs.launcher", "class": "WatchedRunLauncher"},
    "run_monitoring": {"enabled": True, "poll_interval_seconds": 10},
}
"""Runs of the daemon and the UI, as processes of this machine: one whose process was killed is marked as failed."""


def _on_sqlite(home: Path) -> dict[str, Any]:
    log = {
        "module": "kv_pipeline.defs.event_log",
        "class": "BatchedSqliteEventLogStorage",
        "config": {"base_dir": str(home / "history" / "runs")},
    }
    return {**_COMMON, **_WATCHED, "event_log_storage": log}


def _on_postgres() -> dict[str, Any]:
    storage = {
        "module": "kv_pipeline.defs.postgres",
        "class": "PostgresStorage",
        "config": {"postgres_url": {"env": POSTGRES_VARIABLE}},
    }
    return {**_COMMON, **_WATCHED, "storage": {"custom": storage}}


def _on_workers() -> dict[str, Any]:
    launcher = {
        "module": "kv_pipeline.cluster.launcher",
        "class": "LeasedCeleryRunLauncher",
        "config": {"broker": {"env": BROKER_VARIABLE}},
    }
    # That a run waits for a worker is no fault, that its message was lost is. A lost worker is noticed by its lease.
    # Without a limit, 0, Dagster 1.13 logs an error for every run that waits, each time it looks.
    monitoring = {"enabled": True, "poll_interval_seconds": 10, "start_timeout_seconds": _LONGEST_WAIT_S}
    retries = {"enabled": True, "max_retries": 3, "retry_on_asset_or_op_failure": False}
    return {**_on_postgres(), "run_launcher": launcher, "run_monitoring": monitoring, "run_retries": retries}
