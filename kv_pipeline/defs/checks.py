"""Asset checks: every table against its model as it lies on disk, and the quality of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import dagster as dg
import pandera.polars as pa
import polars as pl

from kv_pipeline.errors import StoreError
from kv_pipeline.store import Store, judge_all

SCHEMA_CHECK: Final = "matches_schema"
MIN_MATCH_RATE: Final = 0.95
PLAUSIBLE_RATIO: Final = (0.7, 2.0)
"""Billed / counted prompt tokens. cl100k_base undercounts Claude's tokens, by 7 to 14 % for models of 2025."""


def schema_spec(asset: str) -> dg.AssetCheckSpec:
    """The blocking check that every asset has."""
    return dg.AssetCheckSpec(
        SCHEMA_CHECK,
        asset=asset,
        blocking=True,
        description="What lies on disk is what the table's model says.",
    )


def quality_spec(asset: str, name: str, description: str) -> dg.AssetCheckSpec:
    """A check that warns."""
    return dg.AssetCheckSpec(name, asset=asset, description=description)


def schema_result(
    store: Store,
    models: Sequence[pa.DataFrameSchema],
    partitions: Sequence[str],
    *others: tuple[pa.DataFrameSchema, Sequence[str]],
) -> dg.AssetCheckResult:
    """Read partitions back and check them.

    Args:
        store: The store.
        models: Tables with these partitions.
        partitions: Their keys.
        others: Tables of the asset that are partitioned otherwise, each with its keys.
    """
    n_rows = 0
    try:
        for model, keys in [*((model, partitions) for model in models), *others]:
            n_rows += judge_all(model, store.pieces(model, keys))
    except StoreError as error:
        return dg.AssetCheckResult(check_name=SCHEMA_CHECK, passed=False, metadata={"problem": str(error)})
    return dg.AssetCheckResult(check_name=SCHEMA_CHECK, passed=True, metadata={"rows_checked": n_rows})


def quality_result(name: str, *, passed: bool, **metadata: float | int | str) -> dg.AssetCheckResult:
    """The result of a check that warns."""
    return dg.AssetCheckResult(
        check_name=name, passed=passed, severity=dg.AssetCheckSeverity.WARN, metadata=dict(metadata)
    )


def answers_found(conversations: pl.DataFrame) -> dg.AssetCheckResult:
    """Share of the transcripts' answers that the databases know."""
    transcribed = conversations.filter(pl.col("structure") == "transcripts")
    n_answers = int(transcribed["n_transcript_answers"].sum())
    n_found = int(transcribed["n_requests"].sum())
    rate = n_found / n_answers if n_answers else 1.0
    return quality_result("answers_found", passed=rate >= MIN_MATCH_RATE, match_rate=round(rate, 4), answers=n_answers)


def requests_recorded_once(raw_requests: pl.DataFrame) -> dg.AssetCheckResult:
    """Whether a request stands in two databases, as when one is a copy of the other."""
    ids = raw_requests["request_id"].filter(~raw_requests["request_id"].str.starts_with("row-"))  # those have none
    n_repeated = len(ids) - ids.n_unique()
    return quality_result("recorded_once", passed=n_repeated == 0, repeated_requests=n_repeated)


def messages_unique(message_index: pl.DataFrame) -> dg.AssetCheckResult:
    """Whether message ids name one request each."""
    ids = message_index["message_id"].drop_nulls()
    return quality_result("message_ids_unique", passed=ids.is_unique().all(), repeated=len(ids) - ids.n_unique())


def billed_ratio(report: pl.DataFrame) -> dg.AssetCheckResult:
    """Whether the bill is plausible for what was counted."""
    sums = report.drop_nulls("billed_prompt_tokens").select("prompt_tokens", "billed_prompt_tokens").sum().row(0)
    ratio = sums[1] / sums[0] if sums[0] else 1.0
    is_plausible = PLAUSIBLE_RATIO[0] <= ratio <= PLAUSIBLE_RATIO[1]
    return quality_result("billed_ratio_plausible", passed=is_plausible, billed_over_counted=round(ratio, 4))


def hits_within_input(report: pl.DataFrame) -> dg.AssetCheckResult:
    """No request can hit more than it has."""
    n_above = report.filter(pl.col("hit_tokens") > pl.col("prompt_tokens")).height
    return quality_result("hits_within_input", passed=n_above == 0, rows_above=n_above)
