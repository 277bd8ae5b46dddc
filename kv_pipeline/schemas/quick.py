"""Telling quickly that a frame is what its Pandera model says.

Pandera collects a query per column and check, which costs more than writing the table. Here the same conditions, taken
from the model, are asked of the columns themselves, without a query. Pandera stays the judge: whatever does not pass
here is given to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import pandera.polars as pa
import polars as pl

from kv_pipeline.schemas.columns import polars_schema

_CONDITIONS: Final[dict[str, Callable[[pl.Series, dict[str, Any]], bool]]] = {
    "greater_than_or_equal_to": lambda column, limits: _is_at_least(column, limits["min_value"]),
    "isin": lambda column, limits: set(column.unique()) <= {None, *limits["allowed_values"]},
}


def surely_holds(model: pa.DataFrameSchema, frame: pl.DataFrame) -> bool:
    """Whether a frame has the model's columns, no forbidden nulls, no failed check and no repeated key.

    False also stands for "can't tell": a check of a kind that is not known here.
    """
    if frame.schema != polars_schema(model):
        return False
    passed = all(_passes(expected, frame[name]) for name, expected in model.columns.items())
    return passed and not _repeats_key(frame, model.unique)


def _passes(expected: pa.Column, column: pl.Series) -> bool:
    if column.null_count() and not expected.nullable:
        return False
    conditions = [(_CONDITIONS.get(check.name or ""), check.statistics or {}) for check in expected.checks]
    return all(holds is not None and holds(column, limits) for holds, limits in conditions)


def _is_at_least(column: pl.Series, minimum: float) -> bool:
    least = cast("float | None", column.min())
    return least is None or least >= minimum


def _repeats_key(frame: pl.DataFrame, key: Sequence[str]) -> bool:
    return bool(key) and pl.DataFrame([frame[name] for name in key]).to_struct().n_unique() < frame.height
