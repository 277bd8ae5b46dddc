"""Which files of a store's folder are the store, and in which order they are published.

Everything else is of one machine: locks, Dagster's records, temporary files, what was verified. The bucket may hold
anything by any name, so the same rule decides what is taken from it: a file that it should not have is never written.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

from kv_pipeline.names import TEMPORARY

REPORTS: Final = "reports"
STATE: Final = "state"
SETTINGS: Final = ("salt.next", "salt", "store.json")
"""In the order in which they are written: with a salt that its settings don't name a store can't be opened, so the next
salt is there from before the settings change until both are right."""
_QUARANTINE: Final = "quarantine"
_OF_THE_MACHINE: Final = "dagster"


def is_shared(name: str) -> bool:
    """Whether a file, by its name below the store, is one of the store."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} or part.startswith(TEMPORARY) or "\0" in part for part in parts):
        return False
    if len(parts) == 1:
        return name in SETTINGS
    if parts[0] == _OF_THE_MACHINE:
        return False
    if parts[0] == STATE:
        return len(parts) == 2 and name.endswith(".json")
    return parts[0] == REPORTS or PurePosixPath(name).suffix == ".parquet"


def is_wanted_at_once(name: str) -> bool:
    """Whether a file is fetched before it is asked for: those that are small, and looked for by walking the folder."""
    return name in SETTINGS or name.startswith((f"{STATE}/", f"{_QUARANTINE}/"))


def is_state(name: str) -> bool:
    """Whether a file records what is up to date."""
    return name.startswith(f"{STATE}/")


def is_result(name: str) -> bool:
    """Whether a file is a table, a report, or a damaged one of these: what state is about."""
    return name not in SETTINGS and not is_state(name)
