"""Bringing a store up to date: what `kv-pipeline run` does.

Dagster is only imported when something is out of date.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from kv_pipeline.landing import Landing, direct, discover
from kv_pipeline.schemas.columns import frame_of
from kv_pipeline.schemas.requests import SKIPPED_INPUT
from kv_pipeline.steps import plan
from kv_pipeline.steps.index import transcripts_partition
from kv_pipeline.steps.repair import mend, notices
from kv_pipeline.store import SESSION_MARKER, Store


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

    inbox: Path
    paths: tuple[Path, ...] = ()

    def landing(self) -> Landing:
        """What is there now.

        Raises:
            UsageError: A path does not exist.
        """
        return direct(self.paths) if self.paths else discover(self.inbox)


def bring_up_to_date(
    store: Store, inputs: Inputs, on_wait: Callable[[], None] | None = None, *, verify_all: bool = False
) -> RunOutcome:
    """Materialize everything that is not up to date.

    Args:
        store: The store.
        inputs: Where to look.
        on_wait: Called if another run is working on the store, before waiting for it.
        verify_all: Read every file of the store first, not only those that were touched since they were last verified.

    Raises:
        UsageError: A path does not exist.
        StoreError: An asset failed; what it had finished stays.
    """
    outcome = RunOutcome()
    with store.writing(on_wait):
        store.sweep()
        landing = inputs.landing()
        damaged = mend(store, landing, thoroughly=verify_all)
        outcome.quarantined = [str(path.relative_to(store.root)) for path in damaged]
        if _is_stale(store, landing) or (store.root / SESSION_MARKER).exists():
            _materialize(store, inputs, landing, outcome)
        outcome.skipped = _skipped(store, landing)
        outcome.not_in_landing = plan.not_in_landing(store, landing)
    return outcome


def _is_stale(store: Store, landing: Landing) -> bool:
    return bool(
        plan.stale_databases(store, landing)
        or plan.stale_users(store, landing)
        or plan.stale_conversations(store)
        or plan.obsolete_conversations(store)
        or plan.is_roll_up_stale(store)
    )


def _materialize(store: Store, inputs: Inputs, landing: Landing, outcome: RunOutcome) -> None:
    from kv_pipeline.defs.session import Session

    with Session.open(store.root, inputs.inbox, inputs.paths) as session:
        databases = plan.stale_databases(store, landing)
        if databases:
            session.run_databases(databases)
            outcome.recomputed |= {"raw_requests": len(databases), "message_index": len(databases)}
        users = plan.stale_users(store, landing)
        if users or plan.stale_conversations(store) or plan.obsolete_conversations(store):
            session.run_index()
            outcome.recomputed["conversation_index"] = len(users)
        changed = plan.stale_conversations(store)
        if changed:
            session.run_conversations(changed)
            outcome.recomputed |= dict.fromkeys(plan.CONVERSATION_TABLES, len(changed))
    if plan.is_roll_up_stale(store):  # conversations were only removed
        from kv_pipeline.steps.fleet import roll_up

        roll_up(store)


def _skipped(store: Store, landing: Landing) -> pl.DataFrame:
    skips = [*landing.skips, *notices(store, landing)]
    here = [(s.source, s.row, s.reason, s.found, s.remedy, s.is_left_out) for s in skips]
    partitions = [*landing.databases, *map(transcripts_partition, landing.users)]
    return pl.concat([frame_of(SKIPPED_INPUT, here), store.read(SKIPPED_INPUT, partitions)])
