"""Telling in one pass that a frame is what its Pandera model says.

Pandera collects a query per column and check, which costs more than writing the table. Here the same conditions, taken
from the model, are a single query; nulls are counted anyway. Pandera stays the judge: whatever does not pass here is
given to it.
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
    if any(frame[name].null_count() for name, column in model.columns.items() if not column.nullable):
        return False
    violations = [*_failed_checks(model), *_repeated_key(model)]
    known = [violation.alias(str(n)) for n, violation in enumerate(violations) if violation is not None]
    return len(known) == len(violations) and not any(map(any, frame.select(known).iter_rows()))


def _failed_checks(model: pa.DataFrameSchema) -> Iterator[pl.Expr | None]:
    """Of each check whether a value fails it; None for a check that is not known here."""
    for name, column in model.columns.items():
        for check in column.checks:
            condition = _CONDITIONS.get(check.name or "")
            yield None if condition is None else (~condition(pl.col(name), check.statistics or {})).any()


def _repeated_key(model: pa.DataFrameSchema) -> Iterator[pl.Expr]:
    if model.unique:
        yield pl.struct(*model.unique).n_unique() < pl.len()
