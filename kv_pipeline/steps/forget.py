"""Removing a user: every file and record of the store that says anything of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kv_pipeline.errors import UsageError
from kv_pipeline.quarantine import QUARANTINE, forget_verified
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT, VALIDATION_SUMMARY
from kv_pipeline.steps.fleet import roll_up
from kv_pipeline.store import Store

FORGETTING_STATE: Final = "forgetting"
_SUMS: Final = VALIDATION_SUMMARY.name
_LAST: Final = ("conversations", "raw_requests")
"""Tables by which a user is found, so they go last: a removal that was cut short can be done again."""


class Forgotten(NamedTuple):
    """What was removed of a user.

    Attributes:
        conversations: Their conversations, sorted.
        n_files: Files of tables, quarantined ones included.
    """

    conversations: list[str]
    n_files: int


def known_users(store: Store) -> list[str]:
    """Users that any table, or any record of what was done, names; sorted."""
    names = (name.partition("/")[0] for table in _tables(store) for name in store.partitions(table))
    recorded = (key.partition("/")[0] for state in _states(store) for key in store.state(state))
    return sorted({*names, *recorded})


def begin_to_forget(store: Store, user_id: str) -> None:
    """Record that a user has to be removed: from now on a run finishes it, should it be cut short.

    Raises:
        UsageError: The store knows no such user.
    """
    users = known_users(store)
    if user_id not in users:
        raise UsageError(f"The store knows no user {user_id!r}. There are: {', '.join(users) or 'none'}.")
    store.update_state(FORGETTING_STATE, {user_id: "1"})
    store.folder.publish()


def finish_forgetting(store: Store) -> None:
    """Remove users whose removal was begun."""
    for user_id in store.state(FORGETTING_STATE):
        forget_user(store, user_id)


def forget_user(store: Store, user_id: str) -> Forgotten:
    """Remove a user from every table and record, and sum up who is left; call it holding the store's writer lock."""
    conversations = sorted(key for key in _conversations(store) if _is_of(key, user_id))
    n_files = 0
    for state in _states(store):
        store.update_state(state, {}, removed=[key for key in store.state(state) if _is_of(key, user_id)])
    for table in sorted(_tables(store), key=lambda name: (name in _LAST, name)):
        for key in store.partitions(table):
            if _is_of(key, user_id):
                store.remove(table, key)
                n_files += 1
        shutil.rmtree(store.root / table / user_id, ignore_errors=True)  # empty folders
    n_files += _forget_quarantined(store, user_id)
    forget_verified(store.root)
    roll_up(store)
    store.update_state(FORGETTING_STATE, {}, removed=[user_id])
    return Forgotten(conversations, n_files)


def _conversations(store: Store) -> set[str]:
    tables = (TOKENIZED_BLOCKS.name, TRACES.name, VALIDATION_REPORT.name)
    return {key for table in tables for key in (*store.partitions(table), *store.state(table))}


def _is_of(key: str, user_id: str) -> bool:
    return key == user_id or key.startswith(f"{user_id}/")


def _tables(store: Store) -> list[str]:
    return [name for name in store.tables() if name != _SUMS]


def _states(store: Store) -> list[str]:
    names = {path.stem for path in (store.root / "state").glob("*.json")}
    return sorted(names - {_SUMS, FORGETTING_STATE})


def _forget_quarantined(store: Store, user_id: str) -> int:
    paths = [path for path in _quarantined(store.root) if _is_of(path[1], user_id)]
    for path, _ in paths:
        path.unlink()
    return len(paths)


def _quarantined(root: Path) -> Iterator[tuple[Path, str]]:
    """Files and the partitions they were of."""
    for path in list((root / QUARANTINE).rglob("*.parquet")):
        parts = path.relative_to(root / QUARANTINE).with_suffix("").parts
        yield path, "/".join(parts[1:])
