"""Ratios that are 0, never NaN, where there is nothing to divide by."""

from __future__ import annotations

import polars as pl


def share(part: str, whole: str) -> pl.Expr:
    """Part of a whole, 0 to 1; 0 of nothing is 0, and null stays null."""
    return pl.when(pl.col(whole) == 0).then(0.0).otherwise(pl.col(part) / pl.col(whole))


def ratio(part: float, whole: float) -> float:
    """The same of two numbers."""
    return part / whole if whole else 0.0
