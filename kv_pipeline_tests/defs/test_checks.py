from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from kv_pipeline.defs import checks
from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline_tests.defs.conftest import Place


def frame(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame(columns)


def conversations(transcribed: list[int], recovered: Sequence[int] = (0, 0)) -> pl.DataFrame:
    """Answers in transcripts and traced requests of a conversation of either structure."""
    answers, requests = zip(transcribed, recovered, strict=True)
    return frame(structure=["transcripts", "content"], n_transcript_answers=list(answers), n_requests=list(requests))


@pytest.mark.parametrize(
    ("result", "passed"),
    [
        (checks.requests_recorded_once(frame(request_id=["a", "b"])), True),
        (checks.requests_recorded_once(frame(request_id=["a", "a"])), False),
        (checks.messages_unique(frame(message_id=["a", None, None])), True),
        (checks.messages_unique(frame(message_id=["a", "a"])), False),
        (checks.requests_recorded_once(frame(request_id=["row-1", "row-1"])), True),
        (checks.answers_found(conversations([100, 95])), True),
        (checks.answers_found(conversations([100, 94])), False),
        (checks.answers_found(conversations([0, 0])), True),
        (checks.answers_found(conversations([100, 94], recovered=[0, 50])), False),
        (checks.billed_ratio(frame(prompt_tokens=[100], billed_prompt_tokens=[120])), True),
        (checks.billed_ratio(frame(prompt_tokens=[100], billed_prompt_tokens=[201])), False),
        (checks.billed_ratio(frame(prompt_tokens=[100], billed_prompt_tokens=[69])), False),
        (checks.hits_within_input(frame(hit_tokens=[5], prompt_tokens=[5])), True),
        (checks.hits_within_input(frame(hit_tokens=[6], prompt_tokens=[5])), False),
    ],
)
def test_quality_checks_warn(result: dg.AssetCheckResult, passed: bool) -> None:
    assert result.passed is passed
    assert result.severity is dg.AssetCheckSeverity.WARN


def tamper(path: Path, *columns: pl.Expr) -> None:
    pl.read_parquet(path).with_columns(*columns).write_parquet(path)


@pytest.mark.parametrize(
    "column",
    [
        pl.lit(-1.0).alias("t_s"),
        pl.lit("x").alias("type"),
        pl.lit(None, dtype=pl.String).alias("model"),
        pl.lit(0, dtype=pl.UInt32).alias("request_index"),
        pl.col("turn_index").cast(pl.Int8),
        pl.lit(1).alias("extra"),
    ],
    ids=str,
)
def test_schema_check_fails(place: Place, column: pl.Expr) -> None:
    key = "ada/858af957-6779-4389-a2fd-2106e5bc546d"
    assert checks.schema_result(place.store, [TRACES], [key]).passed
    tamper(place.store.path("traces", key), column)
    result = checks.schema_result(place.store, [TRACES], [key])
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.ERROR
    assert "traces" in str(result.metadata["problem"].value)


def test_schema_check_fails_for_a_damaged_file(place: Place) -> None:
    key = "ada/858af957-6779-4389-a2fd-2106e5bc546d"
    place.store.path("traces", key).write_bytes(b"PAR1 no more")
    assert not checks.schema_result(place.store, [TRACES], [key]).passed
