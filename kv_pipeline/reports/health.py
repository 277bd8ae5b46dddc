"""Figures that say whether a store is well: what the checks of every night look at."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import polars as pl

from kv_pipeline.reports.summary import api_table, cache_report
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.steps.index import conversations
from kv_pipeline.store import Store


class Health(NamedTuple):
    """Figures of a store; None where there is nothing to tell them from.

    Attributes:
        validation_gap_points: Predicted less billed hit rate of the API model, in percentage points, without sign.
        match_rate: Share of transcripts' answers that recordings have, 0 to 1.
        skipped_share: Share of requests and files that were left out, 0 to 1.
        n_left_out: Those requests and files.
        age_h: Hours since the newest recorded request.
        n_requests: Recorded requests.
    """

    validation_gap_points: float | None
    match_rate: float | None
    skipped_share: float | None
    n_left_out: int
    age_h: float | None
    n_requests: int


def health(store: Store, skipped: pl.DataFrame, now_utc: datetime) -> Health:
    """Figures of a store.

    Args:
        store: The store, up to date.
        skipped: SKIPPED_INPUT of everything in the landing folder.
        now_utc: The time.
    """
    raw = store.read(RAW_REQUESTS, store.partitions(RAW_REQUESTS.name))
    n_left_out = int(skipped["is_left_out"].sum())
    n_all = raw.height + n_left_out
    newest = raw["requested_at_utc"].max()
    age_h = (now_utc - newest).total_seconds() / 3600 if isinstance(newest, datetime) else None
    gap = api_table(cache_report(store), [])["difference_points"]
    points = gap[0] if len(gap) else None
    return Health(
        None if points is None else abs(float(points)),
        _match_rate(store),
        n_left_out / n_all if n_all else None,
        n_left_out,
        age_h,
        raw.height,
    )


def _match_rate(store: Store) -> float | None:
    transcribed = conversations(store).filter(pl.col("structure") == "transcripts")
    n_answers = int(transcribed["n_transcript_answers"].sum())
    return int(transcribed["n_requests"].sum()) / n_answers if n_answers else None
