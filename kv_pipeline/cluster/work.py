"""What a worker does with a run."""

from __future__ import annotations

import logging
from typing import Final

import dagster as dg
from dagster._cli.api import _execute_run_command_body

from kv_pipeline.cluster.lease import leased

LOST: Final = "The worker that had this run is gone."
_WAITING: Final = {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING}
_logger = logging.getLogger(__name__)


def work_on(instance: dg.DagsterInstance, run_id: str) -> None:
    """Execute a run, unless another worker does or did.

    A message that comes a second time is of a worker that was lost, or seemed to be. If the run has begun and nobody
    holds its lease, it is marked as failed, and whoever launched it, or Dagster's daemon, launches it again.
    """
    with leased(instance, run_id) as is_mine:
        run = instance.get_run_by_id(run_id)
        if not is_mine or run is None:
            _logger.info("run %s: another worker has it", run_id)
        elif run.status in _WAITING:
            _execute_run_command_body(run_id, instance, lambda _: None, set_exit_code_on_failure=False)
        elif not run.is_finished:
            instance.report_run_failed(run, LOST)
