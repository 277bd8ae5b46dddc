"""raw_requests and message_index: what one proxy database holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import polars as pl

from kv_pipeline.core.tokenizer import preload_encoder
from kv_pipeline.core.twins import index_messages
from kv_pipeline.errors import Skip
from kv_pipeline.landing import DatabaseFile
from kv_pipeline.schemas.columns import frame_of
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS, SEGMENTS, SKIPPED_INPUT
from kv_pipeline.sources.claude_code_proxy.reader import DatabaseContent, DatabaseReader
from kv_pipeline.steps.versions import RAW_REQUESTS_VERSION
from kv_pipeline.store import Store

RAW_REQUESTS_STATE: Final = "raw_requests"
CONTENT_STATE: Final = "raw_requests.content"
"""Digest of what a database's rows say: what the steps after it depend on."""

MESSAGE_INDEX_STATE: Final = "message_index"
"""Which content a database's message_index was made from: raw_requests can be made again without it."""

_TRANSIENT: Final = frozenset({"locked_database", "unreadable_file", "unreadable_database"})


class _UnusableFileError(Exception):
    """The file gave nothing, and an earlier version of it is in the store."""

    def __init__(self, content: DatabaseContent) -> None:
        super().__init__()
        self.content = content


def database_fingerprint(file: DatabaseFile) -> str:
    """Fingerprint of the inputs of a database's partition."""
    return f"{RAW_REQUESTS_VERSION}-{file.fingerprint}"


def ingest_database(store: Store, file: DatabaseFile) -> DatabaseContent:
    """Read a database into raw_requests, segments and skipped_input.

    A file that can't be used any more leaves what was read from it earlier in place.
    """
    preload_encoder()  # what was read is tokenised next
    try:
        content = _ingest(store, file)
    except _UnusableFileError as unusable:
        content = unusable.content
    write_skips(store, file.database_id, content.skips)
    if not any(skip.reason in _TRANSIENT for skip in content.skips):
        store.update_state(RAW_REQUESTS_STATE, {file.database_id: database_fingerprint(file)})
    return content


def _ingest(store: Store, file: DatabaseFile) -> DatabaseContent:
    with store.write_stream(SEGMENTS, file.database_id) as emit:
        reader = DatabaseReader(file.database_id, store.salt, store.settings.keep_billing_header, emit)
        content = reader.read(file.path)
        is_unusable = content.requests.is_empty() and any(skip.row is None for skip in content.skips)
        if is_unusable and store.path(RAW_REQUESTS.name, file.database_id).exists():
            raise _UnusableFileError(content)
    store.write(RAW_REQUESTS, file.database_id, content.requests)
    store.update_state(CONTENT_STATE, {file.database_id: _content_digest(content.requests)})
    return content


def index_database(store: Store, database_id: str) -> pl.DataFrame:
    """Write and return a database's message_index."""
    index = index_messages(store.read(RAW_REQUESTS, [database_id]))
    store.write(MESSAGE_INDEX, database_id, index)
    store.update_state(MESSAGE_INDEX_STATE, {database_id: store.state(CONTENT_STATE).get(database_id, "")})
    return index


def write_skips(store: Store, partition: str, skips: Iterable[Skip]) -> None:
    """Record what was left out of an input, in place of what was recorded before."""
    rows = [(s.source, s.row, s.reason, s.found, s.remedy, s.is_left_out) for s in skips]
    store.write(SKIPPED_INPUT, partition, frame_of(SKIPPED_INPUT, rows))


def _content_digest(requests: pl.DataFrame) -> str:
    columns = requests.select("row_id", "row_digest").to_numpy()
    return hashlib.blake2b(columns.tobytes(), digest_size=16).hexdigest()
