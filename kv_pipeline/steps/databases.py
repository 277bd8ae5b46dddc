"""raw_requests and message_index: what one recording, a proxy's database or a log, holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

import polars as pl

from kv_pipeline.core.twins import INDEXED, index_messages
from kv_pipeline.errors import Skip
from kv_pipeline.landing import DatabaseFile
from kv_pipeline.memory import only_new_objects
from kv_pipeline.schemas.columns import frame_of
from kv_pipeline.schemas.requests import CLAUDE_TRACE, HAR, MESSAGE_INDEX, RAW_REQUESTS, SEGMENTS, SKIPPED_INPUT
from kv_pipeline.sources.anthropic_messages.rows import Recording
from kv_pipeline.sources.claude_code_proxy.reader import DatabaseReader
from kv_pipeline.sources.claude_trace.reader import LogReader
from kv_pipeline.sources.har.reader import HarReader
from kv_pipeline.steps.versions import RAW_REQUESTS_VERSION
from kv_pipeline.store import Store
from kv_pipeline.token_process import prepare

RAW_REQUESTS_STATE: Final = "raw_requests"
CONTENT_STATE: Final = "raw_requests.content"
"""Digest of what a database's rows say: what the steps after it depend on."""

MESSAGE_INDEX_STATE: Final = "message_index"
"""Which content a database's message_index was made from: raw_requests can be made again without it."""

PURGED_STATE: Final = "purged"
"""Databases whose segments may have lost their text: where others need not be looked at."""

_TRANSIENT: Final = frozenset({"locked_database", "unreadable_file", "unreadable_database"})
_DAMAGED_ROWS: Final = frozenset({"damaged_row", "broken_line", "unfinished_line", "broken_entry"})


class _LostRowsError(Exception):
    """The file is damaged, and an earlier reading of it, with rows it no longer gives, is in the store."""

    def __init__(self, content: Recording) -> None:
        super().__init__()
        self.content = content


def database_fingerprint(file: DatabaseFile) -> str:
    """Fingerprint of the inputs of a database's partition."""
    return f"{RAW_REQUESTS_VERSION}-{file.fingerprint}"


def ingest_database(store: Store, file: DatabaseFile) -> Recording:
    """Read a database into raw_requests, segments and skipped_input.

    A file that has become unusable, or gives fewer rows for its damage, leaves what was read earlier in place.
    """
    prepare()  # what is read will be tokenised
    with store.working_on(RAW_REQUESTS.name, file.database_id):
        return _ingest_alone(store, file)


@only_new_objects()
def _ingest_alone(store: Store, file: DatabaseFile) -> Recording:
    try:
        content = _ingest(store, file)
    except _LostRowsError as lost:
        content = lost.content
        found = "fewer of its rows can be read than before"
        remedy = "What was read from it earlier stays in use, until the file can be read again."
        content.skips.append(Skip(file.database_id, None, "earlier_rows_kept", found, remedy, is_left_out=False))
    write_skips(store, file.database_id, content.skips)
    if not any(skip.reason in _TRANSIENT for skip in content.skips):
        store.update_state(RAW_REQUESTS_STATE, {file.database_id: database_fingerprint(file)})
    return content


def _ingest(store: Store, file: DatabaseFile) -> Recording:
    with store.write_stream(SEGMENTS, file.database_id) as emit:
        content = _read(store, file, emit)
        if any(map(_is_damage, content.skips)) and _has_lost_rows(store, file.database_id, content.requests):
            raise _LostRowsError(content)
    store.write(RAW_REQUESTS, file.database_id, content.requests)
    store.update_state(CONTENT_STATE, {file.database_id: content_digest(content.requests)})
    if file.database_id in store.state(PURGED_STATE):  # its content is there again
        store.update_state(PURGED_STATE, {}, removed=[file.database_id])
    return content


def _read(store: Store, file: DatabaseFile, emit: Callable[[pl.DataFrame], None]) -> Recording:
    keep = store.settings.keep_billing_header
    with file.on_disk(scratch=store.root) as path:
        if file.recorded_by == CLAUDE_TRACE:
            return LogReader(file.database_id, store.salt, keep, emit).read(path)
        if file.recorded_by == HAR:
            return HarReader(file.database_id, store.salt, keep, emit).read(path)
        return DatabaseReader(file.database_id, store.salt, keep, emit, scratch=store.root).read(path)


def _is_damage(skip: Skip) -> bool:
    return skip.is_left_out and (skip.row is None or skip.reason in _DAMAGED_ROWS)


def _has_lost_rows(store: Store, database_id: str, requests: pl.DataFrame) -> bool:
    earlier = store.read(RAW_REQUESTS, [database_id])
    return not earlier.select("row_id").join(requests, on="row_id", how="anti").is_empty()


def index_database(store: Store, database_id: str) -> pl.DataFrame:
    """Write and return a database's message_index."""
    content = store.state(CONTENT_STATE).get(database_id, "")
    index = index_messages(store.read(RAW_REQUESTS, [database_id], INDEXED))
    store.write(MESSAGE_INDEX, database_id, index)
    store.update_state(MESSAGE_INDEX_STATE, {database_id: content})
    return index


def write_skips(store: Store, partition: str, skips: Iterable[Skip]) -> None:
    """Record what was left out of an input, in place of what was recorded before."""
    rows = [(s.source, s.row, s.reason, s.found, s.remedy, s.is_left_out) for s in skips]
    store.write(SKIPPED_INPUT, partition, frame_of(SKIPPED_INPUT, rows))


def content_digest(requests: pl.DataFrame) -> str:
    """Changes when what a database's rows say does."""
    columns = requests.select("row_id", "row_digest").to_numpy()
    return hashlib.blake2b(columns.tobytes(), digest_size=16).hexdigest()
