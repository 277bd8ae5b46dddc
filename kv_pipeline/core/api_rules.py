"""The rules of the API's prompt cache, as data with dates and sources.

Rules that changed have a date from which they hold; a request is simulated under the rules of its own day.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

LIFETIME_S: Final = {"5m": 300.0, "1h": 3600.0}
"""Source: platform.claude.com, "Prompt caching", "1-hour cache duration"."""

_GUIDE: Final = "platform.claude.com/docs/en/build-with-claude/prompt-caching"


class Rules(NamedTuple):
    """What the cache did from a day on.

    Attributes:
        valid_from_utc: First moment the rules hold.
        max_breakpoints: Markers that count.
        look_back_positions: Positions that a breakpoint searches for an entry, its own included.
        collapses_tool_runs: Whether a run of tool_use blocks, or of tool_result blocks, is one position.
        source: Where it is written.
    """

    valid_from_utc: datetime
    max_breakpoints: int
    look_back_positions: int
    collapses_tool_runs: bool
    source: str


HISTORY: Final = (Rules(datetime(2024, 8, 14, tzinfo=UTC), 4, 20, False, _GUIDE),)
"""In order of time.

The guide's newer text counts a run of tool blocks as one position, without saying since when. No recorded bill seen so
far tells the two apart, so the older text holds until one does; `with_collapsed_tool_runs` simulates the newer one.
"""


def rules_at(time_utc: datetime, history: tuple[Rules, ...] = HISTORY) -> Rules:
    """The rules of a moment; before the first, the first."""
    past = [rules for rules in history if rules.valid_from_utc <= time_utc]
    return past[-1] if past else history[0]


def with_collapsed_tool_runs(since_utc: datetime, history: tuple[Rules, ...] = HISTORY) -> tuple[Rules, ...]:
    """A history in which runs of tool blocks count as one position from a moment on."""
    newer = rules_at(since_utc, history)._replace(valid_from_utc=since_utc, collapses_tool_runs=True)
    later = [rules._replace(collapses_tool_runs=True) for rules in history if rules.valid_from_utc > since_utc]
    return (*(rules for rules in history if rules.valid_from_utc <= since_utc), newer, *later)
