"""What recovery needs to know of requests' content, read from their segments: each distinct segment once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from kv_pipeline.core.content_facts import MESSAGE_FACTS, head_facts, message_facts
from kv_pipeline.core.conversations import ROW
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.requests import SEGMENTS
from kv_pipeline.store import Store

CHARACTERS_PER_TOKEN: Final = 4
_CHUNK_MESSAGES: Final = 2048
_COLUMNS: Final = ("segment_index", "segment_id", "kind", "role", "text")
_HEAD: Final = {
    "segment_id": pl.Binary(),
    "identity": pl.UInt64(),
    "n_characters": pl.Int64(),
    "says_subagent": pl.Boolean(),
}


class Content(NamedTuple):
    """Requests as `core.recovered.recover` takes them, and `MESSAGE_FACTS` of their messages."""

    requests: pl.DataFrame
    facts: pl.DataFrame


def load_content(store: Store, turns: pl.DataFrame, workers: int = 1) -> Content:
    """Read the content of requests.

    Text that was purged is known by its id alone: such messages are still told apart, but not what they say.

    Args:
        store: The store.
        turns: Rows of `RAW_REQUESTS`, with `named_agent` and `is_indexed`.
        workers: Processes to parse with.
    """
    by_database = {str(key[0]): rows for key, rows in turns.group_by("database_id", maintain_order=True)}
    segments = {key: _needed(store, key, rows) for key, rows in by_database.items()}
    nothing = pl.DataFrame(schema=polars_schema(SEGMENTS)).select(_COLUMNS)
    distinct = pl.concat([nothing, *segments.values()]).unique("segment_id", keep="first", maintain_order=True)
    messages = distinct.filter(kind="message").with_columns(number=pl.int_range(pl.len(), dtype=pl.UInt32))
    heads = _heads(distinct.filter(pl.col("kind") != "message"))
    parts = [_requests(rows, segments[key], messages, heads) for key, rows in by_database.items()]
    return Content(pl.concat([_requests(turns.clear(), nothing, messages, heads), *parts]), _facts(messages, workers))


def _needed(store: Store, database_id: str, turns: pl.DataFrame) -> pl.DataFrame:
    indexes = pl.concat(
        [turns["message_segments"].explode(), turns["tools_segment"], turns["system_segment"]]
    ).drop_nulls().unique()  # fmt: skip
    segments = pl.scan_parquet(store.file(SEGMENTS.name, database_id), glob=False)
    return segments.filter(pl.col("segment_index").is_in(indexes.implode())).select(_COLUMNS).collect()


def _facts(messages: pl.DataFrame, workers: int) -> pl.DataFrame:
    known = messages.filter(pl.col("text").is_not_null())
    chunks = [piece["text"].to_list() for piece in known.iter_slices(_CHUNK_MESSAGES)]
    read = pl.concat([pl.DataFrame(schema=MESSAGE_FACTS), *_mapped(chunks, workers)])
    numbered = read.with_columns(number=known["number"])
    purged = messages.filter(pl.col("text").is_null())
    return pl.concat([numbered, _purged(purged)]).sort("number").drop("number")


def _mapped(chunks: Sequence[list[str]], workers: int) -> list[pl.DataFrame]:
    if workers < 2 or len(chunks) < 2:
        return list(map(message_facts, chunks))
    # Not forked: Polars has threads, and a fork of a process with threads can hang.
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(message_facts, chunks))


def _purged(messages: pl.DataFrame) -> pl.DataFrame:
    flags = ("is_fork", "is_warmup", "is_continuation", "asks_for_summary")
    lists = ("texts", "results", "calls")
    return messages.select(
        identity=_first_word(messages["segment_id"]),
        n_characters=pl.lit(1, pl.UInt32),
        is_assistant=pl.col("role").eq_missing("assistant"),
        **{name: pl.lit(value=False) for name in flags},
        **{name: pl.lit([], MESSAGE_FACTS[name]) for name in lists},
        number=pl.col("number"),
    )


def _first_word(segment_ids: pl.Series) -> pl.Series:
    words = np.frombuffer(b"".join(segment_ids), dtype="<u8")
    return pl.Series(words[::2], dtype=pl.UInt64)


def _heads(segments: pl.DataFrame) -> pl.DataFrame:
    """Tools and system prompts: a handful, whatever the number of requests."""
    known = segments.filter(pl.col("text").is_not_null())
    purged = segments.filter(pl.col("text").is_null())
    rows = [(segment_id, *head_facts(text)) for segment_id, text in known.select("segment_id", "text").iter_rows()]
    return pl.concat([
        pl.DataFrame(rows, schema=_HEAD, orient="row"),
        purged.select(
            "segment_id", identity=_first_word(purged["segment_id"]), n_characters=pl.lit(0, pl.Int64),
            says_subagent=pl.lit(value=False),
        ),
    ])  # fmt: skip


def _requests(turns: pl.DataFrame, segments: pl.DataFrame, messages: pl.DataFrame, heads: pl.DataFrame) -> pl.DataFrame:
    n_indexes = max(segments["segment_index"].to_list(), default=0) + 1
    known = (
        pl.DataFrame({"segment_index": pl.int_range(n_indexes, dtype=pl.UInt32, eager=True)})
        .join(segments.select("segment_index", "segment_id"), on="segment_index", how="left", maintain_order="left")
        .join(messages.select("segment_id", "number"), on="segment_id", how="left", maintain_order="left")
        .join(heads, on="segment_id", how="left", maintain_order="left")
    )
    number, identity, size, is_subagent = (
        pl.lit(known[name]) for name in ("number", "identity", "n_characters", "says_subagent")
    )
    tools, system = pl.col("tools_segment"), pl.col("system_segment")
    prefix = size.gather(tools).fill_null(0) + size.gather(system).fill_null(0)
    return turns.select(
        "session_id", "named_agent", *ROW, "requested_at_utc", "model", "message_id", "is_indexed",
        tools_id=identity.gather(tools),
        system_id=identity.gather(system),
        is_subagent=is_subagent.gather(system).fill_null(value=False),
        prefix_tokens=prefix // CHARACTERS_PER_TOKEN,
        messages=pl.col("message_segments").list.eval(number.gather(pl.element())),
    )  # fmt: skip
