"""Settings from the environment that are numbers; an empty variable is one that is not set."""

from __future__ import annotations

import math
import os

from kv_pipeline.errors import UsageError


def number(variable: str, unit: str = "", at_least: float = -math.inf) -> float | None:
    """A finite number, or None if the variable is not set.

    Args:
        variable: Its name.
        unit: What it counts, in the plural, if anything.
        at_least: The least it may be.

    Raises:
        UsageError: It is something else.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < at_least:
        raise _wrong(variable, text, "number", unit, at_least)
    return value


def whole_number(variable: str, unit: str, at_least: int = 1) -> int | None:
    """The same for a number without a fraction, in decimal digits.

    Raises:
        UsageError: It is something else.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < at_least:
        raise _wrong(variable, text, "whole number", unit, at_least)
    return int(text)


def _wrong(variable: str, text: str, kind: str, unit: str, at_least: float) -> UsageError:
    of = f" of {unit}" if unit else ""
    least = "" if at_least == -math.inf else f", at least {at_least:g}"
    return UsageError(f"{variable} is {text!r}, not a {kind}{of}{least}.")
