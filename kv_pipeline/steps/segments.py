"""Reading back the segments that requests consist of, and only those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from kv_pipeline.core.hashing import SEGMENT_ID_BYTES
from kv_pipeline.core.payloads import Payload, payload_tokens
from kv_pipeline.core.sections import RequestSegments, SegmentContent
from kv_pipeline.errors import StoreError
from kv_pipeline.queries import collected
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.requests import SEGMENTS
from kv_pipeline.store import Store

_Payload = dict[str, object]
_NO_PAYLOAD = np.empty(0, dtype=np.uint32)


class LoadedSegments(NamedTuple):
    """Segments of a batch of requests, numbered across databases.

    Attributes:
        contents: Number to content; a segment that two databases hold has one number.
        numbers: Database to (segment index to number).
        estimates: Number to stand-in tokens, of the few segments that have payloads.
    """

    contents: Mapping[int, SegmentContent]
    numbers: Mapping[str, Mapping[int, int]]
    estimates: Mapping[int, int]

    def of_request(
        self, database_id: str, tools: int | None, system: int | None, messages: list[int]
    ) -> RequestSegments:
        """A request's segments by number."""
        number = self.numbers[database_id]
        return RequestSegments(
            None if tools is None else number[tools],
            None if system is None else number[system],
            tuple(map(number.__getitem__, messages)),
        )

    def estimated_tokens(self, segments: RequestSegments) -> int:
        """Stand-in tokens for payloads in a request."""
        if not self.estimates:
            return 0
        numbers = (segments.tools, segments.system, *segments.messages)
        return sum(self.estimates.get(number, 0) for number in numbers if number is not None)


def load_segments(store: Store, requests: pl.DataFrame) -> LoadedSegments:
    """Load the segments of requests with `database_id`, `tools_segment`, `system_segment`, `message_segments`.

    Raises:
        StoreError: Their text was purged, or is missing.
    """
    number_of: dict[bytes, int] = {}
    contents: dict[int, SegmentContent] = {}
    numbers: dict[str, dict[int, int]] = {}
    for rows in requests.partition_by("database_id", maintain_order=True):
        database_id: str = rows["database_id"][0]
        known = numbers[database_id] = dict[int, int]()
        for index, segment_id, text, payloads in _needed(store, database_id, rows):
            number = known[index] = number_of.setdefault(segment_id, len(number_of))
            if number not in contents:
                contents[number] = SegmentContent(text, _payload_tokens(payloads))
    estimates = {number: len(c.payload_tokens) for number, c in contents.items() if len(c.payload_tokens)}
    return LoadedSegments(contents, numbers, estimates)


def _needed(store: Store, database_id: str, requests: pl.DataFrame) -> Iterator[tuple[int, bytes, str, list[_Payload]]]:
    """Segments in the order in which requests use them first: a tokenizer that is ahead makes what is next."""
    sections = pl.concat_list("tools_segment", "system_segment", "message_segments")
    indexes = requests.select(sections.explode()).to_series().drop_nulls().unique(maintain_order=True)
    wanted = pl.col("segment_index").is_between(indexes.min(), indexes.max()) & pl.col("segment_index").is_in(
        indexes.implode()
    )
    found = store.select(SEGMENTS, database_id, ["segment_index", "segment_id", "text", "payloads"], wanted)
    if found.height != len(indexes) or found["text"].null_count():
        raise StoreError(
            f"Content of database {database_id} is no longer in the store. "
            "Run again with the database in the landing folder, or keep the results that are there."
        )
    rows = {row[0]: row for row in found.iter_rows()}
    yield from map(rows.__getitem__, indexes)


def _payload_tokens(payloads: list[_Payload]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    if not payloads:
        return _NO_PAYLOAD
    return np.concatenate([payload_tokens(Payload(**payload)) for payload in payloads])  # type: ignore[arg-type]


def segment_ids(store: Store, database_id: str) -> pl.Series:
    """By segment index the first 8 bytes of the id, as u64: the same content has the same in any database."""
    columns = ["segment_index", "segment_id"]
    found = store.select(SEGMENTS, database_id, columns)
    words = np.frombuffer(b"".join(found.sort("segment_index")["segment_id"]), dtype="<u8")
    return pl.Series(words[:: SEGMENT_ID_BYTES // 8], dtype=pl.UInt64)


def content_types(store: Store, requests: pl.DataFrame) -> pl.DataFrame:
    """Content types present in the messages of requests.

    Returns:
        One row per request: conversation_id, request_index, message_types (sorted).
    """
    keys, columns = ["conversation_id", "request_index"], ["database_id", "segment_index", "content_types"]
    schema = polars_schema(SEGMENTS)
    nothing = pl.DataFrame(schema={name: schema[name] for name in columns})
    segments = [store.select(SEGMENTS, key, columns) for key in sorted(set(requests["database_id"]))]
    return (
        requests.lazy()
        .select(*keys, "database_id", segment_index="message_segments")
        .explode("segment_index")
        .join(pl.concat([nothing, *segments]).lazy(), on=["database_id", "segment_index"])
        .explode("content_types")
        .drop_nulls("content_types")
        .group_by(keys)
        .agg(message_types=pl.col("content_types").unique().sort())
        .pipe(collected)
    )
