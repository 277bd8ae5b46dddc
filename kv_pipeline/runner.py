"""Bringing a store up to date: what `kv-pipeline run` does.

Dagster is only imported when something is out of date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from kv_pipeline.errors import StoreError, needs_extra
from kv_pipeline.landing import Landing, direct, discover
from kv_pipeline.logs import detail
from kv_pipeline.remote.url import Location
from kv_pipeline.schemas.columns import frame_of
from kv_pipeline.schemas.requests import SKIPPED_INPUT
from kv_pipeline.steps import plan
from kv_pipeline.steps.index import transcripts_partition
from kv_pipeline.steps.repair import mend, notices
from kv_pipeline.store import SESSION_MARKER, Store

if TYPE_CHECKING:  # importing Dagster takes a second
    from dagster import DagsterInstance

    from kv_pipeline.cluster.session import BatchSession
    from kv_pipeline.defs.session import Session


@dataclass(slots=True)
class RunOutcome:
    """What a run recomputed, by asset the number of partitions (users for conversation_index), and what it left out.

    Attributes:
        recomputed: Asset to number of partitions.
        skipped: SKIPPED_INPUT of everything in the landing folder, and of what the store can't make again.
        quarantined: Files of the store that were damaged, relative to it: moved aside, and made again if possible.
        not_in_landing: Recordings that the store has and the landing folder no longer has.
    """

    recomputed: dict[str, int] = field(default_factory=dict)
    skipped: pl.DataFrame = field(default_factory=lambda: frame_of(SKIPPED_INPUT, []))
    quarantined: list[str] = field(default_factory=list)
    not_in_landing: list[str] = field(default_factory=list)

    @property
    def has_left_out(self) -> bool:
        """Whether some input was not used."""
        return bool(self.skipped["is_left_out"].any())


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where to look: an inbox, or given paths."""

    inbox: Location
    paths: tuple[Path, ...] = ()

    def landing(self) -> Landing:
        """What is there now.

        Raises:
            UsageError: A path does not exist.
        """
        return direct(self.paths) if self.paths else discover(self.inbox)


def bring_up_to_date(
    store: Store,
    inputs: Inputs,
    on_wait: Callable[[], None] | None = None,
    *,
    verify_all: bool = False,
    instance: DagsterInstance | None = None,
    batch_size: int | None = None,
) -> RunOutcome:
    """Materialize everything that is not up to date.

    Args:
        store: The store.
        inputs: Where to look; an inbox, if workers do the work.
        on_wait: Called if another run is working on the store, before waiting for it.
        verify_all: Read every file of the store first, not only those that were touched since they were last verified.
        instance: Where to record what is materialized; the store's own, or DAGSTER_HOME's, if None.
        batch_size: Most partitions of a run, if Celery workers do the work; None for this process.

    Raises:
        UsageError: A path does not exist.
        StoreError: An asset failed; what it had finished stays.
    """
    outcome = RunOutcome()
    with _faults_named(store), store.writing(on_wait):
        store.sweep()
        landing = inputs.landing()
        detail("landing", recordings=len(landing.databases), users=len(landing.users), skips=len(landing.skips))
        damaged = mend(store, landing, thoroughly=verify_all)
        for path in damaged:
            detail("quarantined", file=str(path.relative_to(store.root)))
        outcome.quarantined = [str(path.relative_to(store.root)) for path in damaged]
        if _is_stale(store, landing) or (store.root / SESSION_MARKER).exists():
            _materialize(store, landing, outcome, lambda: _session(store, inputs, batch_size, instance))
        outcome.skipped = _skipped(store, landing)
        outcome.not_in_landing = plan.not_in_landing(store, landing)
    return outcome


@contextlib.contextmanager
def _faults_named(store: Store) -> Iterator[None]:
    """Faults of the system below us as an error that says what to do; what was finished stays, the rest is repeated."""
    try:
        yield
    except OSError as error:
        what = f"The store at {store.root} can't be written or read: {error.strerror or type(error).__name__}"
        raise StoreError(f"{what}. Check space and permissions, then run again.") from error


@contextlib.contextmanager
def _records_named() -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        why = " ".join(str(getattr(error, "orig", None) or type(error).__name__).split())  # PostgreSQL's have lines
        remedy = "Check space and permissions, then run again"
        raise StoreError(f"Dagster's records can't be written: {why.removesuffix('.')}. {remedy}.") from error


def _is_stale(store: Store, landing: Landing) -> bool:
    return bool(
        plan.stale_databases(store, landing)
        or plan.stale_users(store, landing)
        or plan.stale_conversations(store)
        or plan.obsolete_conversations(store)
        or plan.is_roll_up_stale(store)
    )


def _session(
    store: Store, inputs: Inputs, batch_size: int | None, instance: DagsterInstance | None
) -> AbstractContextManager[Session] | AbstractContextManager[BatchSession]:
    if batch_size is None:
        from kv_pipeline.defs.session import Session

        return Session.open(store, inputs.inbox, inputs.paths, instance)
    needs_extra("dagster_celery", "cluster", "--engine celery")
    from kv_pipeline.cluster.session import BatchSession

    return BatchSession.open(store, inputs.inbox, batch_size)


def _materialize(
    store: Store,
    landing: Landing,
    outcome: RunOutcome,
    open_session: Callable[[], AbstractContextManager[Session] | AbstractContextManager[BatchSession]],
) -> None:
    with _records_named(), open_session() as session:
        databases = plan.stale_databases(store, landing)
        detail("stale", databases=len(databases))
        if databases:
            session.run_databases(databases)
            outcome.recomputed |= {"raw_requests": len(databases), "message_index": len(databases)}
        users = plan.stale_users(store, landing)
        if users or plan.stale_conversations(store) or plan.obsolete_conversations(store):
            session.run_index()
            outcome.recomputed["conversation_index"] = len(users)
        changed = plan.stale_conversations(store)
        detail("stale", users=len(users), conversations=len(changed))
        if changed:
            session.run_conversations(changed)
            outcome.recomputed |= dict.fromkeys(plan.CONVERSATION_TABLES, len(changed))
    if plan.is_roll_up_stale(store):  # conversations were only removed, or made by workers
        from kv_pipeline.steps.fleet import roll_up

        roll_up(store)


def _skipped(store: Store, landing: Landing) -> pl.DataFrame:
    skips = [*landing.skips, *notices(store, landing)]
    here = [(s.source, s.row, s.reason, s.found, s.remedy, s.is_left_out) for s in skips]
    partitions = [*landing.databases, *map(transcripts_partition, landing.users)]
    return pl.concat([frame_of(SKIPPED_INPUT, here), store.read(SKIPPED_INPUT, partitions)])
