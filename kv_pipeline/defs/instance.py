"""The Dagster instance that belongs to a store: `<store>/dagster`, or DAGSTER_HOME if the user set one."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, Final

import dagster as dg

from kv_pipeline.processes import is_other_running

HOME_VARIABLE: Final = "DAGSTER_HOME"
PROCESS_TAG: Final = "kv_pipeline/process"
"""Tag of runs made in process by the command line: the process that works on it."""
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
        if not config.exists() or _is_of_another_folder(config, home):
            temporary = config.with_suffix(".tmp")
            temporary.write_text(json.dumps(_configuration(home), indent=1))  # JSON is YAML
            temporary.replace(config)
        return dg.DagsterInstance.from_config(str(home))


def home_of(store: Path) -> Path:
    """Folder of the instance for a store."""
    return Path(os.environ.get(HOME_VARIABLE) or store / "dagster").resolve()


def fail_dead_runs(instance: dg.DagsterInstance) -> int:
    """Mark runs of killed command lines as failed, which nobody else would; returns how many."""
    begun = instance.get_runs(dg.RunsFilter(statuses=_BEGUN))
    dead = [run for run in begun if PROCESS_TAG in run.tags and not _is_alive(run.tags[PROCESS_TAG])]
    for run in dead:
        instance.report_run_failed(run, "The process that worked on it died.")
    return len(dead)


def _is_of_another_folder(config: Path, home: Path) -> bool:
    """Whether a configuration is as we wrote it, but before the store was moved or copied; the user's own is kept."""
    try:
        found = json.loads(config.read_text())
        written_for = Path(found["event_log_storage"]["config"]["base_dir"]).parents[1]
    except (ValueError, TypeError, LookupError):
        return False
    return written_for != home and found == _configuration(written_for)


def _is_alive(process: str) -> bool:
    return process.isdigit() and is_other_running(int(process))


def _configuration(home: Path) -> dict[str, Any]:
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        "event_log_storage": {
            "module": "kv_pipeline.defs.event_log",
            "class": "BatchedSqliteEventLogStorage",
            "config": {"base_dir": str(home / "history" / "runs")},
        },
        # Capturing would redirect standard output away from the progress display.
        "compute_logs": {
            "module": "dagster._core.storage.noop_compute_log_manager",
            "class": "NoOpComputeLogManager",
        },
    }
