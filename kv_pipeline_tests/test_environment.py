from __future__ import annotations

import pytest

from kv_pipeline.environment import number, whole_number
from kv_pipeline.errors import UsageError


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("THING", raising=False)
    return monkeypatch


def test_not_set_and_empty_are_the_same(given: pytest.MonkeyPatch) -> None:
    assert number("THING") is None
    assert whole_number("THING", "things") is None
    given.setenv("THING", "")
    assert number("THING") is None
    assert whole_number("THING", "things") is None


@pytest.mark.parametrize(("text", "value"), [("2", 2.0), ("0.5", 0.5), ("1e3", 1000.0)])
def test_numbers(given: pytest.MonkeyPatch, text: str, value: float) -> None:
    given.setenv("THING", text)
    assert number("THING", "seconds", at_least=0.5) == value


@pytest.mark.parametrize("text", ["much", "nan", "inf", "0.4", "-1"])
def test_what_is_no_number_is_named(given: pytest.MonkeyPatch, text: str) -> None:
    given.setenv("THING", text)
    with pytest.raises(UsageError, match=f"^THING is '{text}', not a number of seconds, at least 0.5.$"):
        number("THING", "seconds", at_least=0.5)


@pytest.mark.parametrize("text", ["0", "1.5", "-3", "\u0664", "two"])
def test_what_is_no_whole_number_is_named(given: pytest.MonkeyPatch, text: str) -> None:
    given.setenv("THING", text)
    with pytest.raises(UsageError, match="not a whole number of bytes, at least 1"):
        whole_number("THING", "bytes")


def test_a_limit_that_counts_nothing(given: pytest.MonkeyPatch) -> None:
    given.setenv("THING", "much")
    with pytest.raises(UsageError, match=r"^THING is 'much', not a number\.$"):
        number("THING")
