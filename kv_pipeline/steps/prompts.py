"""A user's requests as prompts of content blocks: what the *API* model works on."""

from __future__ import annotations

from collections.abc import Iterator
from sys import intern
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.core.content_blocks import BlockPayload, ContentBlock, content_blocks
from kv_pipeline.core.normalise import SegmentKind
from kv_pipeline.core.prompts import Segment
from kv_pipeline.core.tokenizer import encoder
from kv_pipeline.schemas.columns import frame_of
from kv_pipeline.schemas.explanations import CONTENT_BLOCKS
from kv_pipeline.schemas.requests import SEGMENTS
from kv_pipeline.steps.databases import CONTENT_STATE
from kv_pipeline.steps.versions import CONTENT_BLOCKS_VERSION
from kv_pipeline.store import Store

CONTENT_BLOCKS_STATE: Final = "content_blocks"
ROWS_AT_A_TIME: Final = 4096
"""Segments described at a time; bounds the memory of a database of any size."""


class Prompts(NamedTuple):
    """Segments of several databases under one numbering.

    Attributes:
        segments: Number to content blocks; segments without any, such as an empty list of tools, are left out.
        first_numbers: Per database the number of its segment 0; the others follow in order of their index.
    """

    segments: dict[int, Segment]
    first_numbers: dict[str, int]


def describe_segments(store: Store, database_id: str) -> None:
    """Write content_blocks of a database, unless they are there.

    Where segments were purged, what was described earlier stays.
    """
    content = f"{CONTENT_BLOCKS_VERSION}-{store.state(CONTENT_STATE).get(database_id, '')}"
    is_there = store.has(CONTENT_BLOCKS.name, database_id)
    if is_there and store.state(CONTENT_BLOCKS_STATE).get(database_id) == content:
        return
    if is_there and not has_all_text(store, database_id):
        return
    with store.write_stream(CONTENT_BLOCKS, database_id) as append:
        for rows in _segments(store, database_id):
            append(frame_of(CONTENT_BLOCKS, _described(store.salt, rows)))
    store.update_state(CONTENT_BLOCKS_STATE, {database_id: content})


def _segments(store: Store, database_id: str) -> Iterator[pl.DataFrame]:
    columns = ["database_id", "segment_index", "kind", "role", "text", "payloads"]
    n_rows = store.select(SEGMENTS, database_id, ["segment_index"]).height
    for start in range(0, n_rows, ROWS_AT_A_TIME):
        wanted = pl.col("segment_index").is_between(start, start + ROWS_AT_A_TIME - 1)  # numbered from 0, in order
        yield store.select(SEGMENTS, database_id, columns, wanted)


def has_all_text(store: Store, database_id: str) -> bool:
    """Whether no segment of a database was purged or lost."""
    if not store.has(SEGMENTS.name, database_id):
        return False
    return store.select(SEGMENTS, database_id, ["segment_index"], pl.col("text").is_null()).is_empty()


def _described(salt: bytes, segments: pl.DataFrame) -> Iterator[tuple[Any, ...]]:
    encode = encoder()
    for database_id, segment_index, kind, role, text, taken in segments.drop_nulls("text").iter_rows():
        payloads = [BlockPayload(payload["digest"], payload["estimated_tokens"]) for payload in taken]
        blocks = content_blocks(SegmentKind(kind), text, payloads, salt, lambda sent: len(encode(sent)))
        for index, block in enumerate(blocks):
            facets = [{"name": name, "id": facet_id} for name, facet_id in block.facets]
            yield (database_id, segment_index, index, block.kind, role, *block[1:-1], facets)


def load_prompts(store: Store, databases: list[str]) -> Prompts:
    """Content blocks of databases, described where they were not yet."""
    prompts = Prompts({}, {})
    next_number = 0
    for database_id in databases:
        describe_segments(store, database_id)
        first = prompts.first_numbers[database_id] = next_number
        for segment_index, role, blocks in _by_segment(store.read(CONTENT_BLOCKS, [database_id])):
            next_number = first + segment_index + 1
            prompts.segments[first + segment_index] = Segment(role, blocks)
    return prompts


def _by_segment(rows: pl.DataFrame) -> Iterator[tuple[int, str | None, tuple[ContentBlock, ...]]]:
    """Segments with their blocks; rows are in that order."""
    held: list[ContentBlock] = []
    current: tuple[int, str | None] | None = None
    for _, segment_index, _, kind, role, *facts in rows.iter_rows():
        if current is not None and current[0] != segment_index:
            yield *current, tuple(held)
            held = []
        current = (segment_index, None if role is None else intern(role))
        facets = tuple([(intern(facet["name"]), facet["id"]) for facet in facts.pop()])
        held.append(ContentBlock._make((intern(kind), *facts, facets)))
    if current is not None:
        yield *current, tuple(held)
