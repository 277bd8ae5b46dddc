"""What is not up to date: partitions whose recorded fingerprint differs from that of their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import polars as pl

from kv_pipeline.landing import Landing, UserTranscripts
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT, VALIDATION_SUMMARY
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS, SEGMENTS, SKIPPED_INPUT
from kv_pipeline.steps.conversations import fingerprint_of
from kv_pipeline.steps.databases import (
    CONTENT_STATE,
    MESSAGE_INDEX_STATE,
    RAW_REQUESTS_STATE,
    database_fingerprint,
)
from kv_pipeline.steps.explain import stale_reports
from kv_pipeline.steps.fleet import FLEET, roll_up_fingerprint
from kv_pipeline.steps.index import (
    INDEX_MODELS,
    INDEX_STATE,
    TRANSCRIPT_MODELS,
    conversations,
    transcripts_partition,
    user_fingerprint,
)
from kv_pipeline.steps.purge import without_content
from kv_pipeline.steps.transcribed import is_whole, transcribed_partition
from kv_pipeline.store import Store

DATABASE_MODELS: Final = (RAW_REQUESTS, SEGMENTS, SKIPPED_INPUT, MESSAGE_INDEX)
CONVERSATION_TABLES: Final = (TOKENIZED_BLOCKS.name, TRACES.name, VALIDATION_REPORT.name)


def stale_databases(store: Store, landing: Landing) -> list[str]:
    """Databases of the landing folder that are new or changed, or whose message index is behind, sorted."""
    state, content, indexed = map(store.state, (RAW_REQUESTS_STATE, CONTENT_STATE, MESSAGE_INDEX_STATE))
    present = set.intersection(*(set(store.partitions(model.name)) for model in DATABASE_MODELS))
    return [
        key
        for key, file in sorted(landing.databases.items())
        if key not in present or state.get(key) != database_fingerprint(file) or indexed.get(key) != content.get(key)
    ]


def not_in_landing(store: Store, landing: Landing) -> list[str]:
    """Recordings that the store has read and the landing folder no longer has, sorted."""
    read = {key for key in store.state(CONTENT_STATE) if key != transcribed_partition(key.partition("/")[0])}
    return sorted(read - set(landing.databases))


def stale_users(store: Store, landing: Landing) -> list[str]:
    """Users whose index is out of date, sorted: those of the landing folder, and those whose files were lost."""
    state = store.state(INDEX_STATE)
    present = _indexed_users(store)
    here = [
        user
        for user in landing.users
        if user not in present
        or state.get(user) != user_fingerprint(store, user, transcripts_of(landing, user))
        or not is_whole(store, user)
    ]
    elsewhere = set(state) - set(landing.users) - present
    stuck = stuck_users(store, landing) if store.state(CONTENT_STATE) else {}
    return sorted(user for user in {*here, *elsewhere} if user not in stuck)


def stuck_users(store: Store, landing: Landing) -> dict[str, str]:
    """Users who can't be indexed again without losing conversations: to what is missing.

    Their recordings or transcripts are no longer in the landing folder, and what the store had of them was damaged.
    """
    lost = dict(_lost(store, landing))
    return {user: what for user, what in sorted(lost.items()) if user in store.state(INDEX_STATE)}


def _lost(store: Store, landing: Landing) -> Iterator[tuple[str, str]]:
    here = {*landing.databases, *map(transcribed_partition, landing.transcripts)}
    for model in (RAW_REQUESTS, SEGMENTS):
        there = set(store.partitions(model.name))
        for key in sorted(set(store.state(CONTENT_STATE)) - there - here):
            yield key.partition("/")[0], f"table {model.name} of {key}"
    damaged = store.quarantined()
    for model in TRANSCRIPT_MODELS:
        for user in sorted(user for table, user in damaged if table == model.name):
            if user not in landing.transcripts:
                yield user, f"table {model.name}"


def _indexed_users(store: Store) -> set[str]:
    """Users who have every file that indexing writes."""
    noted = {transcripts_partition(user) for user in store.state(INDEX_STATE)} & set(
        store.partitions(SKIPPED_INPUT.name)
    )
    tables = [set(store.partitions(model.name)) for model in (*INDEX_MODELS, *TRANSCRIPT_MODELS)]
    return {user for user in set.intersection(*tables) if transcripts_partition(user) in noted}


def transcripts_of(landing: Landing, user_id: str) -> UserTranscripts:
    """A user's transcripts; empty if there are none."""
    return landing.transcripts.get(user_id) or UserTranscripts()


def stale_conversations(store: Store) -> list[str]:
    """Conversations with requests whose partitions are out of date and can be made again, sorted."""
    outdated = outdated_conversations(store)
    kept = without_content(store, outdated)
    return [key for key in outdated if key not in kept]


def outdated_conversations(store: Store) -> list[str]:
    """Conversations with requests whose partitions are out of date, sorted; those without content included."""
    states = {table: store.state(table) for table in CONVERSATION_TABLES}
    present = {table: set(store.partitions(table)) for table in CONVERSATION_TABLES}
    known = conversations(store, ["conversation_id", "fingerprint", "n_requests"])
    return [
        key
        for key, fingerprint, _ in traced(known).iter_rows()
        if any(
            key not in present[table] or states[table].get(key) != fingerprint_of(table, fingerprint)
            for table in CONVERSATION_TABLES
        )
    ]


def obsolete_conversations(store: Store) -> list[str]:
    """Partitions of conversations that the index no longer has, or that have lost all their requests."""
    wanted = set(traced(conversations(store, ["conversation_id", "n_requests"]))["conversation_id"])
    return sorted({key for table in CONVERSATION_TABLES for key in store.partitions(table)} - wanted)


def remove_conversations(store: Store, keys: list[str]) -> None:
    """Remove conversations' partitions."""
    for table in CONVERSATION_TABLES:
        for key in keys:
            store.remove(table, key)
        store.update_state(table, {}, removed=keys)


def is_roll_up_stale(store: Store) -> bool:
    """Whether the fleet roll-up is of other conversations than those in the store, or a user's report behind."""
    is_there = store.has(VALIDATION_SUMMARY.name, FLEET)
    is_current = is_there and store.state(VALIDATION_SUMMARY.name).get(FLEET) == roll_up_fingerprint(store)
    return not is_current or bool(stale_reports(store))


def traced(known: pl.DataFrame) -> pl.DataFrame:
    """Of CONVERSATIONS those that have a partition: the ones with requests."""
    return known.filter(pl.col("n_requests") > 0)
