"""Making a store anew from the landing folder: with another salt, or by another version's rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import polars as pl

from kv_pipeline.atomic import locked
from kv_pipeline.errors import UsageError
from kv_pipeline.landing import Landing
from kv_pipeline.remote.url import Location
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.store import changing, is_store
from kv_pipeline.store_settings import empty_for_rebuild, replace_salt

_SHOWN: Final = 5


def renew_salt(
    location: Location, landing: Landing, *, drop_lost: bool, on_wait: Callable[[], None] | None = None
) -> int:
    """Give a store another salt and remove what the old one is in; the next run makes that again.

    Args:
        location: Folder or URL of the store.
        landing: What it can be made of.
        drop_lost: Go on although recordings of the store are no longer in the landing folder.
        on_wait: Called before waiting for a run that is at work.

    Returns:
        How many recordings are lost.

    Raises:
        UsageError: Recordings would be lost, and that was not asked for.
        StoreError: As `replace_salt`.
    """
    with changing(location, on_wait) as folder:
        n_lost = _refuse_losses(folder.root, landing, drop_lost=drop_lost)
        with locked(folder.root / "lock"):
            replace_salt(folder.root, folder.publish)
    return n_lost


def empty(location: Location, landing: Landing, *, drop_lost: bool, on_wait: Callable[[], None] | None = None) -> int:
    """Remove what is made of the landing folder, whatever version made it; see `renew_salt`."""
    if not is_store(location):
        return 0
    with changing(location, on_wait) as folder:
        n_lost = _refuse_losses(folder.root, landing, drop_lost=drop_lost)
        with locked(folder.root / "lock"):
            empty_for_rebuild(folder.root)
    return n_lost


def lost_recordings(root: Path, landing: Landing) -> list[str]:
    """Recordings that the store has read and that can't be read again, sorted."""
    folder = root / RAW_REQUESTS.name
    known = {str(path.relative_to(folder))[: -len(".parquet")] for path in folder.rglob("*.parquet")}
    return sorted(known - set(landing.databases))


def _refuse_losses(root: Path, landing: Landing, *, drop_lost: bool) -> int:
    lost = lost_recordings(root, landing)
    if lost and not drop_lost:
        raise UsageError(
            f"{len(lost)} recordings with {_n_requests(root, lost):,} requests are no longer in the landing folder and "
            f"can't be made again: {', '.join(lost[:_SHOWN])}{', …' if len(lost) > _SHOWN else ''}. "
            "Put them back, or lose them with --drop-lost."
        )
    return len(lost)


def _n_requests(root: Path, keys: list[str]) -> int:
    paths = [root / RAW_REQUESTS.name / f"{key}.parquet" for key in keys]
    try:
        return sum(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item() for path in paths)
    except pl.exceptions.PolarsError:
        return 0  # of a damaged one nobody can say
