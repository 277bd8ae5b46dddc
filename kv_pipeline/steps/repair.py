"""What a run mends before it begins: damaged files go, and what can be made of the store alone is made again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kv_pipeline.errors import Skip
from kv_pipeline.landing import Landing
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS
from kv_pipeline.steps import plan
from kv_pipeline.steps.databases import CONTENT_STATE, MESSAGE_INDEX_STATE, content_digest, index_database
from kv_pipeline.steps.forget import finish_forgetting
from kv_pipeline.steps.purge import without_content
from kv_pipeline.store import Store


def mend(store: Store, landing: Landing, *, thoroughly: bool = False) -> list[Path]:
    """Finish removals, and set damaged files aside; returns which. Call it holding the store's writer lock.

    Recordings that are no longer in the landing folder get back what can be made of raw_requests: the record of what
    they say, and message_index. All other tables are made again by the assets, as anything that is missing.
    """
    finish_forgetting(store)
    damaged = store.verify(thoroughly=thoroughly)
    content, indexed = store.state(CONTENT_STATE), store.state(MESSAGE_INDEX_STATE)
    there = set(store.partitions(MESSAGE_INDEX.name))
    for key in store.partitions(RAW_REQUESTS.name):
        if key in landing.databases:
            continue
        if key not in content:
            digest = content_digest(store.read(RAW_REQUESTS, [key]))
            store.update_state(CONTENT_STATE, {key: digest})
            content[key] = digest
        if key not in there or indexed.get(key) != content[key]:
            index_database(store, key)
    return damaged


def notices(store: Store, landing: Landing) -> Iterator[Skip]:
    """What the store can't make again: damaged or purged, and no longer in the landing folder."""
    stuck = plan.stuck_users(store, landing)
    for user, what in stuck.items():
        remedy = f"Put it back into the landing folder; or remove the user with `kv-pipeline forget {user}`."
        yield Skip(user, None, "damaged_table", f"{what} was damaged; results made earlier stay as they are", remedy)
    for table, partition in store.quarantined():
        if partition.partition("/")[0] not in stuck:
            remedy = "Look at it in quarantine/, then delete it."
            found = f"a file of table {table} was damaged and is no longer needed"
            yield Skip(partition, None, "quarantined_file", found, remedy, is_left_out=False)
    outdated = plan.outdated_conversations(store)
    made = set.intersection(*(set(store.partitions(table)) for table in plan.CONVERSATION_TABLES))
    for key in sorted(without_content(store, outdated)):
        found = "its content was purged, so earlier results stay" if key in made else "its content was purged"
        remedy = "Put its recordings back into the landing folder to make it again."
        yield Skip(key, None, "content_purged", found, remedy, is_left_out=key not in made)
