"""Timestamps of log files."""

from __future__ import annotations

from datetime import UTC, datetime


def parse_utc(text: str) -> datetime:
    """An ISO 8601 / RFC 3339 timestamp with any offset, in UTC; without an offset it is taken as UTC.

    Raises:
        ValueError: `text` is no such timestamp, or lies outside the years that datetime knows.
    """
    try:
        time = datetime.fromisoformat(text.strip().upper())  # RFC 3339 allows `t` and `z`
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time lies outside the calendar") from error
