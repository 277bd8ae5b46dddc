"""Where inputs and store are, as the assets see it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import dagster as dg
from pydantic import Field

from kv_pipeline.defs.jobs import CONVERSATION_ASSETS
from kv_pipeline.defs.partitions import BATCH_TAG
from kv_pipeline.environment import number
from kv_pipeline.errors import StoreError
from kv_pipeline.landing import Landing, direct, discover
from kv_pipeline.remote.url import location, refuse_overlap
from kv_pipeline.store import Store

DEFAULT_INBOX: Final = "data/landing"
DEFAULT_STORE: Final = "data/store"
DEFAULT_SETTLE_S: Final = 60.0


def _inbox() -> str:
    return os.environ.get("KV_PIPELINE_INBOX", DEFAULT_INBOX)


def _store() -> str:
    return os.environ.get("KV_PIPELINE_STORE", DEFAULT_STORE)


def _settle_s() -> float:
    seconds = number("KV_PIPELINE_SETTLE_S", "seconds", at_least=0)
    return DEFAULT_SETTLE_S if seconds is None else seconds


class PipelineResource(dg.ConfigurableResource[Any]):
    """The landing folder and the store, whose writer lock a run holds from its first step to its end.

    So a run sees one order of partitions and one state of the store, and what it tells Dagster is what it did. Runs of
    conversations, and batches that were handed out, share it: any number of them work at the same time. A pool would do
    the same until a run is killed: that run keeps its slot, while the system frees a dead process's lock.
    """

    inbox: str = Field(default_factory=_inbox, description="Landing folder, one folder per user in it, or its URL.")
    store: str = Field(default_factory=_store, description="Folder of the store, or its URL.")
    settle_s: float = Field(
        default_factory=_settle_s,
        ge=0,
        description="Seconds that a file must not have changed for the sensor.",
    )
    paths: list[str] = Field(default=[], description="Databases and transcript folders, instead of an inbox.")

    def landing(self) -> Landing:
        """What there is to read."""
        return direct(map(Path, self.paths)) if self.paths else discover(location(self.inbox))

    def open_store(self) -> Store:
        """The store."""
        where = location(self.store)
        refuse_overlap(location(self.inbox), where)
        return Store.open(where)

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[PipelineResource]:
        """Hold the writer lock of the store during a run; a sensor only looks."""
        if context.run is None:
            yield self
            return
        store = self.open_store()
        owner = context.run.tags.get(BATCH_TAG, store.settings.salt_check)
        if owner != store.settings.salt_check:
            raise StoreError("This batch is of another store. Start workers with the --store that the command has.")
        take = store.sharing if _may_share(context.run) else store.writing
        with take(lambda: _say_waiting(context)):
            yield self


def _may_share(run: dg.DagsterRun) -> bool:
    selected = {key.to_user_string() for key in run.asset_selection or ()}
    only_conversations = selected <= set(CONVERSATION_ASSETS) if selected else run.job_name == "make_conversations"
    return BATCH_TAG in run.tags or only_conversations


def _say_waiting(context: dg.InitResourceContext) -> None:
    if context.log is not None:
        context.log.info("Another run is working on the store; waiting for it to end.")
