"""Bringing a store up to date on workers: batches of databases, the index here, batches of conversations."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import dagster as dg
from dagster_postgres.utils import DagsterPostgresException
from kombu.exceptions import OperationalError
from sqlalchemy.exc import DBAPIError

from kv_pipeline import progress
from kv_pipeline.cluster.batches import Batch, Launched, weighed
from kv_pipeline.cluster.launcher import LeasedCeleryRunLauncher
from kv_pipeline.cluster.shared_folder import folder_for_workers
from kv_pipeline.defs.instance import fail_begun_runs
from kv_pipeline.defs.partitions import BATCH_TAG, CONVERSATIONS, DATABASES, RANGE_END, RANGE_START, claim_range
from kv_pipeline.defs.session import Session
from kv_pipeline.errors import StoreError, UsageError
from kv_pipeline.landing import discover
from kv_pipeline.remote.url import Location
from kv_pipeline.store import Store

_DATABASE_BATCH_BYTES: Final = 256_000_000
_NO_WORKERS: Final = "kv-pipeline: no worker has taken a batch yet. Start some with `kv-pipeline worker`."


class BatchSession:
    """As `Session`, with the partitions of a job in batches on workers.

    Args:
        session: A session on an instance that workers share.
        store: The store, which this process writes.
        inbox: The landing folder; workers have their own name for it.
        batch_size: Most partitions of a run.
    """

    def __init__(self, session: Session, store: Store, inbox: Location, batch_size: int) -> None:
        self._session, self._store, self._inbox, self._batch_size = session, store, inbox, batch_size

    @classmethod
    @contextmanager
    def open(cls, store: Store, inbox: Location, batch_size: int) -> Iterator[BatchSession]:
        """Open the store's instance; batches that an earlier command left behind are given up.

        Raises:
            UsageError: The instance does not send runs to workers, or the store is in a bucket.
        """
        folder_for_workers(store.folder.location)
        with Session.open(store, inbox, ()) as session:
            if not isinstance(session.instance.run_launcher, LeasedCeleryRunLauncher):
                raise UsageError(
                    "Workers need KV_PIPELINE_POSTGRES_URL and KV_PIPELINE_BROKER_URL, or a DAGSTER_HOME with the "
                    "storage and the launcher of deploy/celery/dagster.yaml."
                )
            # Nobody works on them: this process holds the writer lock alone.
            fail_begun_runs(session.instance, {BATCH_TAG: store.settings.salt_check})
            yield cls(session, store, inbox, batch_size)

    def run_databases(self, keys: Sequence[str]) -> None:
        """Materialize raw_requests and message_index of databases.

        Raises:
            StoreError: A run failed; all others have ended.
        """
        databases = discover(self._inbox).databases
        sizes = {key: databases[key].n_bytes for key in keys if key in databases}
        self._hand_out("ingest_databases", DATABASES, keys, sizes)

    def run_index(self) -> None:
        """Materialize conversation_index, here."""
        self._session.run_index()

    def run_conversations(self, keys: Sequence[str]) -> None:
        """Materialize tokenized_blocks, traces and validation_report of conversations."""
        self._hand_out("make_conversations", CONVERSATIONS, keys, {})

    def _hand_out(
        self, job: str, partitions: dg.DynamicPartitionsDefinition, keys: Sequence[str], weights: Mapping[str, int]
    ) -> None:
        claim_range(self._session.instance, partitions, keys)
        slices = weighed(keys, weights, _DATABASE_BATCH_BYTES, self._batch_size)
        owner = {BATCH_TAG: self._store.settings.salt_check}
        batches = [Batch({RANGE_START: part[0], RANGE_END: part[-1], **owner}, len(part)) for part in slices]
        launched = Launched(self._session.instance, self._session.job(job), _say_idle)
        with self._store.lending(), _said_plainly():
            launched.run(batches, progress.counter(job, len(keys)))


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Turn losses of the servers in between into errors that say what to do; messages of drivers may hold URLs."""
    try:
        yield
    except (DBAPIError, DagsterPostgresException) as error:
        raise StoreError("PostgreSQL was lost. Run again: what workers finished is in the store.") from error
    except OperationalError as error:
        raise StoreError("The broker can't be reached. Check KV_PIPELINE_BROKER_URL and run again.") from error


def _say_idle() -> None:
    print(_NO_WORKERS, file=sys.stderr)  # noqa: T201
