"""tokenized_blocks, traces and validation_report: what is made of each conversation.

Work goes user by user, so each user's requests are joined once, and in batches whose segments fit into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import pandera.polars as pa
import polars as pl

from kv_pipeline.core.conversations import ROW
from kv_pipeline.core.sections import SectionTokenizer
from kv_pipeline.core.traces import trace_rows, with_resets
from kv_pipeline.core.validation import billed_requests, conversation_hits, report_rows
from kv_pipeline.logs import partition_done
from kv_pipeline.memory import only_new_objects
from kv_pipeline.queries import collected
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS, CONVERSATIONS
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.steps.segments import content_types, load_segments
from kv_pipeline.steps.tokenizing import tokenize_conversation
from kv_pipeline.steps.versions import TOKENIZED_BLOCKS_VERSION, TRACES_VERSION, VALIDATION_VERSION
from kv_pipeline.store import Store, check
from kv_pipeline.token_process import engine

BATCH_SEGMENTS: Final = 8192
"""Distinct segments tokenised at a time; about 25 MB of text in real traffic."""

Progress = Callable[[int], None]
"""Called with the number of conversations that were just finished."""

_VERSIONS: Final = {
    TOKENIZED_BLOCKS.name: TOKENIZED_BLOCKS_VERSION,
    TRACES.name: f"{TRACES_VERSION}.{TOKENIZED_BLOCKS_VERSION}",
    VALIDATION_REPORT.name: f"{VALIDATION_VERSION}.{TOKENIZED_BLOCKS_VERSION}",
}
_OF_BILLED: Final = (
    "is_streaming", "exactness", "api_time_s", "ttft_s", "input_tokens", "cache_read_tokens", "cache_write_5m_tokens",
    "cache_write_1h_tokens", "tools_segment", "system_segment", "message_segments",
)  # fmt: skip
_HASHES: Final = ("new_block_hashes", "tail_hash")
_OF_ANSWER: Final = ("output_tokens", "output_types", "answer_tools", "stop_reason", "completed_at_utc")


class Made(NamedTuple):
    """What a step wrote: partitions and rows."""

    n_partitions: int
    n_rows: int


def no_progress(n_conversations: int) -> None:
    """Nobody is watching."""


def fingerprint_of(table: str, conversation_fingerprint: str) -> str:
    """Fingerprint of the inputs of a conversation's partition of a table."""
    return f"{_VERSIONS[table]}-{conversation_fingerprint}"


def tokenize_conversations(store: Store, keys: Iterable[str], progress: Progress = no_progress) -> Made:
    """Write tokenized_blocks of conversations.

    Raises:
        StoreError: Their segments were purged.
    """
    tokens_by = engine()

    def frames(requests: pl.DataFrame) -> Iterator[pl.DataFrame]:
        segments = load_segments(store, requests)
        tokenizer = SectionTokenizer.ahead(tokens_by, segments.contents)
        for conversation in requests.partition_by("conversation_id", maintain_order=True):
            yield tokenize_conversation(store.salt, store.settings.block_size, tokenizer, segments, conversation)

    return _make(store, TOKENIZED_BLOCKS, keys, frames, progress)


def trace_conversations(store: Store, keys: Iterable[str], progress: Progress = no_progress) -> Made:
    """Write traces of conversations whose blocks are there."""

    def frames(requests: pl.DataFrame) -> Iterator[pl.DataFrame]:
        counted = with_resets(_with_blocks(store, requests, leaving_out=_HASHES))
        types = content_types(store, counted.filter("is_reset"))
        rows = counted.join(types, on=["conversation_id", "request_index"], how="left", maintain_order="left")
        yield from trace_rows(rows).partition_by("conversation_id", maintain_order=True)

    return _make(store, TRACES, keys, frames, progress)


def validate_conversations(store: Store, keys: Iterable[str], progress: Progress = no_progress) -> Made:
    """Write validation_report of conversations whose blocks are there."""

    def frames(requests: pl.DataFrame) -> Iterator[pl.DataFrame]:
        blocks = _with_blocks(store, requests)
        report = report_rows(billed_requests(blocks), conversation_hits(blocks), store.settings.block_size)
        yield from report.partition_by("conversation_id", maintain_order=True)

    return _make(store, VALIDATION_REPORT, keys, frames, progress)


@only_new_objects()
def _make(
    store: Store,
    model: pa.DataFrameSchema,
    keys: Iterable[str],
    frames: Callable[[pl.DataFrame], Iterator[pl.DataFrame]],
    progress: Progress,
) -> Made:
    """Check a batch's frames in one go, write each partition, then record their fingerprints."""
    n_partitions = n_rows = 0
    for fingerprints, requests in _batches(store, keys):
        made = list(_logged(model.name, frames(requests)))
        if made:
            check(model, pl.concat(made))
        names = [frame["conversation_id"][0] for frame in made]
        store.write_many(model, zip(names, made, strict=True))
        store.update_state(model.name, {key: fingerprint_of(model.name, fingerprints[key]) for key in names})
        n_partitions, n_rows = n_partitions + len(made), n_rows + sum(frame.height for frame in made)
        progress(len(made))
    return Made(n_partitions, n_rows)


def _logged(table: str, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The frames, each with a line in the log that says how long it took."""
    started_s = time.monotonic()
    for frame in frames:
        ended_s = time.monotonic()
        partition_done(table, frame["conversation_id"][0], ended_s - started_s, rows=frame.height)
        yield frame
        started_s = ended_s


def _batches(store: Store, keys: Iterable[str]) -> Iterator[tuple[dict[str, str], pl.DataFrame]]:
    by_user: dict[str, list[str]] = {}
    for key in keys:
        by_user.setdefault(key.partition("/")[0], []).append(key)
    for user_id, wanted in by_user.items():
        fingerprints = dict(store.read(CONVERSATIONS, [user_id], ["conversation_id", "fingerprint"]).iter_rows())
        requests = user_requests(store, user_id, wanted)
        for batch in _split(requests):
            yield fingerprints, requests.filter(pl.col("conversation_id").is_in(batch))


def user_requests(store: Store, user_id: str, keys: Sequence[str]) -> pl.DataFrame:
    """Requests of a user's conversations in order, with what the billed and the answering row say of each."""
    requests = store.read(CONVERSATION_REQUESTS, [user_id]).filter(pl.col("conversation_id").is_in(list(keys)))
    databases = sorted(set(requests["database_id"]))
    raw = store.read(RAW_REQUESTS, databases, [*ROW, "model", "routed_model", *_OF_BILLED, *_OF_ANSWER]).lazy()
    model = pl.col("routed_model").fill_null(pl.col("model"))
    billed = raw.select("database_id", model.alias("model"), *_OF_BILLED, billed_row_id="row_id")
    answer = raw.select("database_id", *_OF_ANSWER, answer_row_id="row_id")
    return (
        requests.lazy()
        .join(billed, on=["database_id", "billed_row_id"], maintain_order="left")
        .join(answer, on=["database_id", "answer_row_id"], maintain_order="left")
        .pipe(collected)
    )


def _split(requests: pl.DataFrame) -> Iterator[list[str]]:
    """Conversations in order, as many at a time as `BATCH_SEGMENTS` allows."""
    sizes = requests.group_by("conversation_id", maintain_order=True).agg(
        n_segments=pl.col("message_segments").explode().n_unique()
    )
    batch, size = list[str](), 0
    for key, n_segments in sizes.iter_rows():
        if batch and size + n_segments > BATCH_SEGMENTS:
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += n_segments
    if batch:
        yield batch


def _with_blocks(store: Store, requests: pl.DataFrame, leaving_out: Sequence[str] = ()) -> pl.DataFrame:
    keys = ["conversation_id", "request_index"]
    new = [name for name in TOKENIZED_BLOCKS.columns if name not in {*requests.columns, *leaving_out}]
    blocks = store.read(TOKENIZED_BLOCKS, dict.fromkeys(requests["conversation_id"]), [*keys, *new])
    return requests.join(blocks, on=keys, maintain_order="left")
