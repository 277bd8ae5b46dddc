"""Dagster's own run launcher, which knows when the process of a run is gone.

Belongs here: who is alive on one machine. Does not belong here: workers on many, which have leases (`cluster/`).
Read only by ``dagster.yaml``::

    run_launcher:
      module: kv_pipeline.defs.launcher
      class: WatchedRunLauncher
    run_monitoring: {enabled: true, poll_interval_seconds: 10}

Dagster's launcher leaves that to the code server, which marks a run as failed when its process dies. A code server
that is killed as well tells nobody: the run would stay STARTED for ever.

Source: dagster 1.13.27, ``_grpc/server.py`` (``_check_for_orphaned_runs``), ``_daemon/monitoring/run_monitoring.py``.
"""

from __future__ import annotations

import re
from typing import Final

import dagster as dg
from dagster import DefaultRunLauncher
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus

from kv_pipeline.defs.instance import PROCESS_TAG
from kv_pipeline.processes import is_other_alive, process_named, this_machine

MACHINE_TAG: Final = "kv_pipeline/machine"
"""Tag of runs that this launcher launched: the machine their processes are on."""
GONE: Final = "The process that worked on it is gone."
_STARTED: Final = re.compile(r"Started process for run \(pid: (\d+)\)")


class WatchedRunLauncher(DefaultRunLauncher):
    """Launches runs as processes of this machine's code server, and judges by these whether a run was lost."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes; so run monitoring asks for every run that has begun."""
        return True

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start a run's process."""
        self._instance.add_run_tags(context.dagster_run.run_id, {MACHINE_TAG: this_machine()})
        super().launch_run(context)

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a run that has begun is alive; one of another machine is taken to be."""
        process = run.tags.get(PROCESS_TAG) or self._process_of(run)
        if process is not None and is_other_alive(process) is False:
            return CheckRunHealthResult(WorkerStatus.FAILED, GONE)
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _process_of(self, run: dg.DagsterRun) -> str | None:
        """The process that said it works on a run; None if none said so here."""
        if MACHINE_TAG not in run.tags:
            return None
        events = self._instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        found = [match for entry in events if (match := _STARTED.match(entry.get_dagster_event().message or ""))]
        return process_named(int(found[-1][1]), run.tags[MACHINE_TAG]) if found else None
