"""Pairing of replay twins.

Older proxies strip the server-sent events' headers, so the client repeats every streamed turn without streaming: each
turn is recorded twice, and the repetition reads everything from the cache that the first just wrote.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.queries import collected
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.requests import MESSAGE_INDEX

INDEXED: Final = (
    "database_id", "row_id", "requested_at_utc", "is_streaming", "outcome", "message_id", "message_segments",
    "content_id",
)  # fmt: skip
"""What of RAW_REQUESTS the index is made of."""


def index_messages(raw_requests: pl.DataFrame) -> pl.DataFrame:
    """Frame of `MESSAGE_INDEX` from one database's `RAW_REQUESTS`.

    The k-th replay of a content belongs to the earliest streaming request of that content that has none yet, and to
    the latest one before it when all have one: a turn may be replayed more than once. With s streaming requests before
    it, that is number min(k, min over i <= k of (s_i + k - i)).
    """
    is_streaming, is_replay = pl.col("is_streaming"), pl.col("twin_row_id").is_not_null()
    n_streamed, n_replayed = is_streaming.cum_sum().cast(pl.Int64), (~is_streaming).cum_sum().cast(pl.Int64)
    slack = pl.when(~is_streaming).then(n_streamed - n_replayed).cum_min().clip(upper_bound=0)
    ok = (
        raw_requests.lazy()
        .filter(pl.col("outcome") == "ok")
        .sort("requested_at_utc", "row_id")
        .with_columns(
            n_messages=pl.col("message_segments").list.len(),
            n_streamed=n_streamed.over("content_id"),
            twin=pl.when(~is_streaming).then((n_replayed + slack).over("content_id")),
        )
    )
    streamed = ok.filter(is_streaming).select("content_id", twin="n_streamed", twin_row_id="row_id")
    return (
        ok.join(streamed, on=["content_id", "twin"], how="left")
        .with_columns(billed_row_id=pl.coalesce("twin_row_id", "row_id"))
        .with_columns(n_replays=is_replay.sum().over("billed_row_id").cast(pl.UInt32))
        .with_columns(
            twin_role=pl.when(is_replay).then(pl.lit("replay_twin"))
            .when(pl.col("n_replays") > 0).then(pl.lit("streaming_twin"))
            .otherwise(pl.lit("single"))
        )
        .select(polars_schema(MESSAGE_INDEX).names())
        .sort("row_id")
        .pipe(collected)
    )  # fmt: skip
