from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kv_pipeline.sources.times import parse_utc

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2025-01-01T12:00:00Z", NOON, id="utc"),
        pytest.param("2025-01-01t12:00:00z", NOON, id="lower case"),
        pytest.param("2025-01-01T17:30:00+05:30", NOON, id="east"),
        pytest.param("2024-12-31T21:00:00-15:00", NOON, id="far west"),
        pytest.param("2025-01-01 12:00:00", NOON, id="as SQLite writes it"),
        pytest.param(" 2025-01-01T12:00:00.000000999Z\n", NOON, id="nanoseconds and spaces"),
        pytest.param("2025-01-01T12:00:00.25Z", NOON.replace(microsecond=250_000), id="fraction"),
    ],
)
def test_any_offset_becomes_utc(text, expected):
    assert parse_utc(text) == expected
    assert parse_utc(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "1735732800", "2025-13-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-14:00"],
)
def test_what_is_no_time_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_utc(text)
