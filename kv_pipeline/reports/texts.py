"""Words and numbers for people that several reports share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

DEFINITION: Final = (
    "hit rate = cache read / (input + cache read + cache write), over tokens. Billed: the API's own counts. Simulated: "
    "blocks model, the longest prefix of blocks that somebody in the conversation used within the lifetime that its "
    "markers ask for, over counted tokens (cl100k_base). Predicted: API model with breakpoints, look-back and "
    "lifetimes, over the API's tokens. Requests without a bill are left out of rates. Differences are in percentage "
    "points."
)
NOT_EXPLAINED: Final = (
    "The API model and the causes of loss have not been computed for this store. Run kv-pipeline run again."
)
NOTHING: Final = "-"
"""Shown for a value that is not known."""
PRIVACY: Final = (
    "Made offline from counts, types and ids; no content of conversations is in this page. Requests in no trace "
    "(failed attempts, side requests, replays) are not counted."
)


def money_note(unpriced: Sequence[str]) -> str:
    """What sums of money leave out."""
    if not unpriced:
        return ""
    return f" No price is known of {', '.join(unpriced)}: not in any sum of money."


def percent(share: float | None) -> str:
    """A share as a percentage; a dash for nothing."""
    return NOTHING if share is None else f"{share:.2%}"


def dollars(usd: float | None) -> str:
    """Dollars: cents for large amounts, hundredths of cents for small ones."""
    if usd is None:
        return NOTHING
    sign = "-" if usd < 0 else ""
    return f"{sign}${abs(usd):,.2f}" if abs(usd) >= 100 else f"{sign}${abs(usd):,.4f}"


def count(number: float | None) -> str:
    """A whole number with thousands separated."""
    return NOTHING if number is None else f"{number:,.0f}"


def short_count(number: float) -> str:
    """A large number in thousands, millions or billions."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):,.2f} {unit}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for limit, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= limit:
            return f"{seconds / limit:,.1f} {unit}"
    return f"{seconds:,.1f} s"
