"""What workers on several machines can share as a store."""

from __future__ import annotations

from pathlib import Path

from kv_pipeline.errors import UsageError
from kv_pipeline.remote.url import Location


def folder_for_workers(store: Location) -> Path:
    """The folder of a store.

    Raises:
        UsageError: It is in a bucket, which one process at a time writes.
    """
    if isinstance(store, Path):
        return store
    raise UsageError(
        f"Workers on several machines write one store together, which {store} can't be: name a folder that all of them "
        "share with --store, or run without --engine celery."
    )
