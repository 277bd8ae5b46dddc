"""dagster-celery's run launcher, which knows when a worker is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, ResumeRunContext, WorkerStatus
from dagster._serdes import ConfigurableClassData
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_QUEUE_TAG, DAGSTER_CELERY_TASK_ID_TAG

from kv_pipeline.cluster.celery_app import TASK, application, default_queue
from kv_pipeline.cluster.lease import is_leased
from kv_pipeline.cluster.work import LOST
from kv_pipeline.defs.instance import PROCESS_TAG


class LeasedCeleryRunLauncher(CeleryRunLauncher):
    """Sends the ids of runs to the workers of `celery_app`, and judges by their leases whether one was lost.

    dagster-celery asks Celery's result backend, where a task of a killed worker stays STARTED for ever. No result
    backend is needed here.

    Args:
        broker: URL of the broker.
        inst_data: How the instance was configured.
    """

    def __init__(self, broker: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(default_queue(), broker=broker, inst_data=inst_data)
        self.celery = application(broker)

    @classmethod
    def config_type(cls) -> dict[str, dg.Field]:
        """One setting, which may name a variable of the environment."""
        return {"broker": dg.Field(dg.StringSource, is_required=True)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Build the launcher from its ``config`` block."""
        return cls(config_value["broker"], inst_data)

    @property
    def supports_resume_run(self) -> bool:
        """No: a run of a lost worker is launched anew, and skips nothing that it can't prove to be done."""
        return False

    def launch_run(self, context: LaunchRunContext) -> None:
        """Send a run to the workers."""
        run = context.dagster_run
        queue = run.tags.get(DAGSTER_CELERY_QUEUE_TAG, self.default_queue)
        sent = self.celery.send_task(TASK, kwargs={"run_id": run.run_id}, queue=queue)
        self._instance.add_run_tags(run.run_id, {DAGSTER_CELERY_TASK_ID_TAG: sent.id})

    def resume_run(self, context: ResumeRunContext) -> None:
        """Is never asked for; see `supports_resume_run`."""
        raise NotImplementedError

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the process that works on a run that has begun is alive, wherever it is."""
        if PROCESS_TAG in run.tags or is_leased(self._instance, run.run_id):  # a command line's own run has no lease
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, LOST)

    def get_run_worker_debug_info(
        self,
        run: dg.DagsterRun,
        include_container_logs: bool | None = True,  # noqa: ARG002 - Dagster's signature
    ) -> str | None:
        """Which task it was."""
        return f"Celery task {run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)}"
