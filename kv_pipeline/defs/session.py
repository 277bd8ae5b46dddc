"""In-process runs against a store's Dagster instance, as the command line makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import dagster as dg

from kv_pipeline.defs.build import build_defs
from kv_pipeline.defs.failures import cause_of_failure
from kv_pipeline.defs.instance import PROCESS_TAG, fail_dead_runs, open_instance
from kv_pipeline.defs.partitions import CONVERSATIONS, DATABASES, claim_range
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.processes import this_process
from kv_pipeline.remote.url import Location
from kv_pipeline.store import SESSION_MARKER, Store

_QUIET: Final[dict[str, Any]] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class Session:
    """An opened instance with the pipeline's definitions.

    Args:
        instance: The Dagster instance.
        pipeline: Where inputs and store are.
    """

    def __init__(self, instance: dg.DagsterInstance, pipeline: PipelineResource) -> None:
        self.instance = instance
        self._definitions = build_defs(resource_overrides={"pipeline": pipeline})

    @classmethod
    @contextmanager
    def open(
        cls, store: Store, inbox: Location, paths: Sequence[Path], instance: dg.DagsterInstance | None = None
    ) -> Iterator[Session]:
        """Open the store's instance, unless one is given; runs that died are marked as failed.

        The marker outlives a killed process, and a failed one: then somebody has to look after its runs.
        """
        where = str(store.folder.location)
        resource = PipelineResource(inbox=str(inbox), store=where, paths=[str(path) for path in paths])
        with open_instance(store.root) if instance is None else contextlib.nullcontext(instance) as opened:
            fail_dead_runs(opened)
            (store.root / SESSION_MARKER).touch()
            yield cls(opened, resource)
        (store.root / SESSION_MARKER).unlink(missing_ok=True)

    def job(self, name: str) -> dg.JobDefinition:
        """A job by its name."""
        return self._definitions.resolve_job_def(name)

    def run_databases(self, keys: Sequence[str]) -> None:
        """Materialize raw_requests and message_index of databases.

        Raises:
            StoreError: An asset failed.
        """
        self._run("ingest_databases", claim_range(self.instance, DATABASES, keys))

    def run_index(self) -> None:
        """Materialize conversation_index, which puts the conversations to make at the end of the partitions."""
        self._run("index_conversations", {})

    def run_conversations(self, keys: Sequence[str]) -> None:
        """Materialize tokenized_blocks, traces and validation_report of conversations."""
        self._run("make_conversations", claim_range(self.instance, CONVERSATIONS, keys))

    def _run(self, job: str, tags: Mapping[str, str]) -> None:
        result = self.job(job).execute_in_process(
            instance=self.instance,
            tags={PROCESS_TAG: this_process(), **tags},
            run_config=_QUIET,
            raise_on_error=False,
        )
        if not result.success:
            failures = [event for event in result.all_events if event.is_step_failure]
            raise cause_of_failure(job, failures)
