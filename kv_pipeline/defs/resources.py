"""Where inputs and store are, as the assets see it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import dagster as dg
from pydantic import Field

from kv_pipeline.landing import Landing, direct, discover
from kv_pipeline.store import Store

DEFAULT_INBOX: Final = "data/landing"
DEFAULT_STORE: Final = "data/store"


def _inbox() -> str:
    return os.environ.get("KV_PIPELINE_INBOX", DEFAULT_INBOX)


def _store() -> str:
    return os.environ.get("KV_PIPELINE_STORE", DEFAULT_STORE)


class PipelineResource(dg.ConfigurableResource[None]):
    """The landing folder and the store."""

    inbox: str = Field(default_factory=_inbox, description="Landing folder, one folder per user in it.")
    store: str = Field(default_factory=_store, description="Folder of the store.")
    paths: list[str] = Field(default=[], description="Databases and transcript folders, instead of an inbox.")

    def landing(self) -> Landing:
        """What there is to read."""
        return direct(map(Path, self.paths)) if self.paths else discover(Path(self.inbox))

    def open_store(self) -> Store:
        """The store."""
        return Store.open(Path(self.store))
