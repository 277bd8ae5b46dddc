"""Purging content: what was said goes from segments, while everything that was made of it stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

import polars as pl

from kv_pipeline.quarantine import forget_quarantined
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS, SEGMENTS
from kv_pipeline.steps.databases import PURGED_STATE
from kv_pipeline.steps.prompts import ROWS_AT_A_TIME, describe_segments
from kv_pipeline.store import Store


class Purged(NamedTuple):
    """What a purge took away.

    Attributes:
        databases: Databases with segments that lost their text, sorted.
        n_segments: Those segments.
        n_bytes: Their text, as ASCII.
    """

    databases: list[str]
    n_segments: int
    n_bytes: int


def purge_text(store: Store, before: datetime | None = None, user_id: str | None = None) -> Purged:
    """Take the text out of segments; call it holding the store's writer lock.

    Args:
        store: The store.
        before: Only of segments that no request since then contains; all if None.
        user_id: Only of this user's recordings; everybody's if None.
    """
    purged, n_segments, n_bytes = list[str](), 0, 0
    for database_id in store.partitions(SEGMENTS.name):
        if user_id is not None and database_id.partition("/")[0] != user_id:
            continue
        old = _old_segments(store, database_id, before)
        n_old, n_old_bytes = old.height, int(old["n_bytes"].sum())
        if n_old:
            _purge(store, database_id, old["segment_index"])
            purged.append(database_id)
            n_segments, n_bytes = n_segments + n_old, n_bytes + n_old_bytes
    # Damaged files may hold text, and nobody can say of when.
    forget_quarantined(store.root, _quarantined_segments(store, user_id))
    return Purged(purged, n_segments, n_bytes)


def without_content(store: Store, conversation_ids: Iterable[str]) -> set[str]:
    """Of these conversations those that can't be tokenised again: some of their content is no longer in the store."""
    by_user: dict[str, list[str]] = {}
    for key in conversation_ids:
        by_user.setdefault(key.partition("/")[0], []).append(key)
    return {
        key
        for user_id, keys in by_user.items()
        for database_id, requests in _by_database(store, user_id, keys)
        for key in _without(store, database_id, requests)
    }


def _old_segments(store: Store, database_id: str, before: datetime | None) -> pl.DataFrame:
    """Segments with text that no request since a moment contains: segment_index, n_bytes."""
    size = pl.col("text").str.len_bytes().alias("n_bytes")
    # Text is measured while it is read, so that it never is in memory as a whole.
    with_text = pl.concat(
        [pl.DataFrame(schema={"segment_index": pl.UInt32, "n_bytes": pl.UInt32})]
        + [rows.drop_nulls("text").select("segment_index", size) for rows in _rows(store, database_id)]
    )
    if before is None:
        return with_text
    recent = store.read(RAW_REQUESTS, [database_id]).filter(pl.col("requested_at_utc") >= before)
    return with_text.join(used_segments(recent), on="segment_index", how="anti")


def used_segments(requests: pl.DataFrame) -> pl.DataFrame:
    """Segments that requests consist of: segment_index, each once."""
    indexes = [requests["message_segments"].explode(), requests["tools_segment"], requests["system_segment"]]
    return pl.concat(indexes).drop_nulls().unique().cast(pl.UInt32).to_frame("segment_index")


def _purge(store: Store, database_id: str, indexes: pl.Series) -> None:
    describe_segments(store, database_id)  # reports are made of that, and it is made of text
    store.update_state(PURGED_STATE, {database_id: "1"})
    store.folder.publish()  # what marks them is known before the text is gone
    is_old = pl.col("segment_index").is_in(indexes.implode())
    purged = pl.when(is_old).then(pl.lit(None, pl.String)).otherwise(pl.col("text")).alias("text")
    with store.write_stream(SEGMENTS, database_id) as append:
        for rows in _rows(store, database_id):
            append(rows.with_columns(purged))


def _rows(store: Store, database_id: str) -> Iterator[pl.DataFrame]:
    n_rows = store.select(SEGMENTS, database_id, ["segment_index"]).height
    columns = list(SEGMENTS.columns)
    for start in range(0, n_rows, ROWS_AT_A_TIME):
        wanted = pl.col("segment_index").is_between(start, start + ROWS_AT_A_TIME - 1)  # numbered from 0, in order
        yield store.select(SEGMENTS, database_id, columns, wanted)


def _quarantined_segments(store: Store, user_id: str | None) -> list[tuple[str, str]]:
    folder = store.root / "quarantine" / SEGMENTS.name
    keys = [str(path.relative_to(folder))[: -len(".parquet")] for path in folder.rglob("*.parquet")]
    return [(SEGMENTS.name, key) for key in keys if user_id is None or key.partition("/")[0] == user_id]


def _by_database(store: Store, user_id: str, keys: list[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Requests of conversations in databases that were purged, or whose segments are gone."""
    columns = ["conversation_id", "database_id", "billed_row_id"]
    placed = store.read(CONVERSATION_REQUESTS, [user_id], columns).filter(pl.col("conversation_id").is_in(keys))
    suspects = set(store.state(PURGED_STATE))
    for database_id in sorted(set(placed["database_id"])):
        if database_id in suspects or not store.has(SEGMENTS.name, database_id):
            parts = ["row_id", "tools_segment", "system_segment", "message_segments"]
            raw = store.read(RAW_REQUESTS, [database_id], parts)
            rows = placed.filter(pl.col("database_id") == database_id)
            wanted = rows.select("conversation_id", row_id="billed_row_id")
            yield database_id, wanted.join(raw, on="row_id", how="left")


def _without(store: Store, database_id: str, requests: pl.DataFrame) -> Iterator[str]:
    if not store.has(SEGMENTS.name, database_id):
        yield from requests["conversation_id"].unique()
        return
    there = store.select(SEGMENTS, database_id, ["segment_index"], pl.col("text").is_not_null())
    for (key,), rows in requests.group_by("conversation_id"):
        if used_segments(rows).join(there, on="segment_index", how="anti").height:
            yield str(key)
