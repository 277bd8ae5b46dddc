"""Pairing of replay twins.

Older proxies strip the server-sent events' headers, so the client repeats every streamed turn without streaming: each
turn is recorded twice, and the repetition reads everything from the cache that the first just wrote.
"""

from __future__ import annotations

from typing import Final

import polars as pl

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
    by_content = "content_id"
    ok = (
        raw_requests.filter(pl.col("outcome") == "ok")
        .with_columns(n_messages=pl.col("message_segments").list.len())
        .sort("requested_at_utc", "row_id")
        .with_columns(
            n_streamed=pl.col("is_streaming").cum_sum().over(by_content).cast(pl.Int64),
            n_replayed=(~pl.col("is_streaming")).cum_sum().over(by_content).cast(pl.Int64),
        )
    )
    streamed = ok.filter("is_streaming").select(by_content, twin="n_streamed", twin_row_id="row_id")
    replays = (
        ok.filter(~pl.col("is_streaming"))
        .with_columns(
            slack=(pl.col("n_streamed") - pl.col("n_replayed")).cum_min().clip(upper_bound=0).over(by_content)
        )
        .select("row_id", by_content, twin=pl.col("n_replayed") + pl.col("slack"))
        .join(streamed, on=[by_content, "twin"])
        .select("row_id", "twin_row_id")
    )
    counts = replays.group_by("twin_row_id").agg(n_replays=pl.len()).rename({"twin_row_id": "billed_row_id"})
    is_replay, is_replayed = pl.col("twin_row_id").is_not_null(), pl.col("n_replays").is_not_null()
    return (
        ok.join(replays, on="row_id", how="left")
        .with_columns(billed_row_id=pl.coalesce("twin_row_id", "row_id"))
        .join(counts, on="billed_row_id", how="left")
        .with_columns(
            twin_role=pl.when(is_replay).then(pl.lit("replay_twin"))
            .when(is_replayed).then(pl.lit("streaming_twin"))
            .otherwise(pl.lit("single")),
            n_replays=pl.col("n_replays").fill_null(0).cast(pl.UInt32),
        )
        .select(polars_schema(MESSAGE_INDEX).names())
        .sort("row_id")
    )  # fmt: skip
