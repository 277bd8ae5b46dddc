"""Handing out batches of partitions as runs to workers, and seeing that each comes to an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher import WorkerStatus

from kv_pipeline.cluster.work import LOST
from kv_pipeline.defs.failures import cause_of_failure
from kv_pipeline.errors import StoreError

MAX_RETRIES: Final = 3
_POLL_S: Final = 0.3
_HEALTH_S: Final = 5.0
_PATIENCE_S: Final = 15.0
_QUIET: Final = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_NOT_BY_THE_DAEMON: Final = {"dagster/max_retries": "0"}


@dataclass(frozen=True, slots=True)
class Batch:
    """Partitions for one run.

    Attributes:
        tags: Tags of the run; they name its range of partitions.
        n_partitions: How many.
        attempt: How many runs of it were lost before.
    """

    tags: Mapping[str, str]
    n_partitions: int
    attempt: int = 0


def weighed(keys: Sequence[str], weights: Mapping[str, int], limit: int, max_keys: int) -> Iterator[Sequence[str]]:
    """Slices of keys in order, each as long as its weights stay within the limit, and at least one key.

    Args:
        keys: What to slice.
        weights: Weight of each key; 0 if missing.
        limit: Greatest sum of weights of a slice that has more than one key.
        max_keys: Most keys of a slice.
    """
    start = weight = 0
    for place, key in enumerate(keys):
        added = weights.get(key, 0)
        if place > start and (weight + added > limit or place - start == max_keys):
            yield keys[start:place]
            start, weight = place, 0
        weight += added
    if start < len(keys):
        yield keys[start:]


class Launched:
    """Runs of one job on workers, a batch each, until all have ended.

    A run whose worker was lost is launched anew, at most `MAX_RETRIES` times; one whose step failed is not, as it would
    fail again.

    Args:
        instance: An instance whose launcher knows a lost worker.
        job: The job.
        on_idle: Called once if no worker takes a batch for a while.
    """

    def __init__(self, instance: dg.DagsterInstance, job: dg.JobDefinition, on_idle: Callable[[], None]) -> None:
        self._instance, self._job, self._on_idle = instance, job, on_idle
        # Not by path: wherever a worker is, it imports the package that it has.
        repository = ReconstructableRepository.for_module("kv_pipeline.defs", "defs")
        self._origin = repository.get_reconstructable_job(job.name).get_python_origin()
        self._open: dict[str, Batch] = {}
        self._failures: list[StoreError] = []

    def run(self, batches: Sequence[Batch], progress: Callable[[int], None]) -> None:
        """Launch batches and wait for their end.

        Raises:
            StoreError: A run failed; all others have ended.
        """
        for batch in batches:
            self._launch(batch)
        checked = begun = time.monotonic()
        is_idle = True
        while self._open:
            time.sleep(_POLL_S)
            runs = self._instance.get_runs(dg.RunsFilter(run_ids=list(self._open)))
            for run in filter(lambda run: run.is_finished, runs):
                progress(self._settle(run))
            now = time.monotonic()
            is_idle = is_idle and all(run.status == dg.DagsterRunStatus.STARTING for run in runs)
            if is_idle and now - begun > _PATIENCE_S:
                self._on_idle()
                is_idle = False
            if now - checked > _HEALTH_S:
                checked = now
                self._fail_lost(runs)
        if self._failures:
            raise self._failures[0]

    def _launch(self, batch: Batch) -> None:
        run = self._instance.create_run_for_job(
            self._job, tags={**_NOT_BY_THE_DAEMON, **batch.tags}, run_config=_QUIET, job_code_origin=self._origin
        )
        self._open[run.run_id] = batch
        self._instance.launch_run(run.run_id, None)  # type: ignore[arg-type]  # our launcher needs no workspace

    def _settle(self, run: dg.DagsterRun) -> int:
        """Take note of a run that has ended; returns how many partitions are done with it."""
        batch = self._open.pop(run.run_id)
        if run.status == dg.DagsterRunStatus.SUCCESS:
            return batch.n_partitions
        steps = [record.event_log_entry for record in self._failed_steps(run.run_id)]
        if not steps and run.status == dg.DagsterRunStatus.FAILURE and batch.attempt < MAX_RETRIES:
            self._launch(Batch(batch.tags, batch.n_partitions, batch.attempt + 1))
            return 0
        self._failures.append(cause_of_failure(self._job.name, [entry.get_dagster_event() for entry in steps]))
        return 0

    def _failed_steps(self, run_id: str) -> Sequence[dg.EventLogRecord]:
        return self._instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records

    def _fail_lost(self, runs: Sequence[dg.DagsterRun]) -> None:
        for run in runs:
            if run.status != dg.DagsterRunStatus.STARTED:
                continue
            if self._instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED:
                now = self._instance.get_run_by_id(run.run_id)
                if now is not None and not now.is_finished:  # it may have ended, and let go of its lease, meanwhile
                    self._instance.report_run_failed(now, LOST)
