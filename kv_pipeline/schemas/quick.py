"""Telling in one pass that a frame is what its Pandera model says.

Pandera collects a query per column and check, which costs more than writing the table. Here the same conditions, taken
from the model, are counted in a single query. Pandera stays the judge: whatever does not pass here is given to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pandera.polars as pa
import polars as pl

from kv_pipeline.schemas.columns import polars_schema

_CONDITIONS: Final[dict[str, Callable[[pl.Expr, dict[str, Any]], pl.Expr]]] = {
    "greater_than_or_equal_to": lambda column, limits: column >= limits["min_value"],
    "isin": lambda column, limits: column.is_in(list(limits["allowed_values"])),
}


def surely_holds(model: pa.DataFrameSchema, frame: pl.DataFrame) -> bool:
    """Whether a frame has the model's columns, no forbidden nulls, no failed check and no repeated key.

    False also stands for "can't tell": a check of a kind that is not known here.
    """
    if frame.schema != polars_schema(model):
        return False
    violations = list(_violations(model))
    if any(violation is None for violation in violations):
        return False
    counts = frame.select(v.alias(str(n)) for n, v in enumerate(violations) if v is not None)
    keys = frame.select(model.unique) if model.unique else None
    return not any(counts.row(0)) and (keys is None or not keys.is_duplicated().any())


def _violations(model: pa.DataFrameSchema) -> Iterator[pl.Expr | None]:
    yield pl.lit(0)
    for name, column in model.columns.items():
        if not column.nullable:
            yield pl.col(name).null_count()
        for check in column.checks:
            condition = _CONDITIONS.get(check.name or "")
            yield None if condition is None else (~condition(pl.col(name), check.statistics or {})).sum()
