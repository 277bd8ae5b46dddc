"""Parsing and serialising JSON beside what the standard library alone gives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.json_text import parse, serialise

# Pieces that JSON is made of, right and wrong: joined at random they meet the edges of both parsers.
NUMBERS = ["0", "-0", "7", "-12", "01", "-", "1.0", "-0.0", "1e5", "1E400", "0.1", "1e-7", "18446744073709551616"]
WORDS = ["null", "true", "false", "NaN", "Infinity", "-Infinity", "nul"]
IN_STRINGS = ["a", "Agent", "é", "\u2028", "😀", "\x7f", "\x00", "\t", "\\", "/", "\ud800", "\udc00", "\ufeff"]
ESCAPES = [r"\n", r"\u0007", r"\u007f", r"\u001B", r"\u00e9", r"\ud83d\ude00", r"\ud800", r"\udc00", r"\/", r"\x"]

in_strings = st.lists(st.sampled_from(IN_STRINGS + ESCAPES), max_size=5).map("".join)
strings = in_strings.map('"{}"'.format)
scalars = st.sampled_from(NUMBERS + WORDS) | strings | st.integers().map(str) | st.floats().map(str)
spaces = st.sampled_from(["", "", "", " ", "\n", "\t", "\x0b"])


def joined(parts: list[str], space: str, ends: str) -> str:
    return ends[0] + space + (space + "," + space).join(parts) + ends[1]


def nested(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    keys = st.sampled_from(['"a"', '"b"', r'"\u0061"', '""', "1"]) | strings
    pairs = st.builds("{}:{}".format, keys, values)
    return st.builds(joined, st.lists(values, max_size=4), spaces, st.sampled_from(["[]", "[]", "[}"])) | st.builds(
        joined, st.lists(pairs, max_size=4), spaces, st.just("{}")
    )


texts = st.recursive(scalars, nested, max_leaves=12).map(lambda text: text.encode("utf-8", "surrogatepass"))


def outcome(convert, sent):
    try:
        return convert(sent)
    except (ValueError, RecursionError) as error:
        return "not JSON" if isinstance(error, ValueError) else "too deep"


def slowly(sent: bytes) -> str:
    return json.dumps(json.loads(sent.decode("utf-8", "surrogatepass")), separators=(",", ":"))


def quickly(sent: bytes) -> str:
    value, may_have_floats = parse(sent)
    return serialise(value, may_have_floats=may_have_floats)


@given(texts)
def test_equals_the_standard_library(sent):
    assert outcome(quickly, sent) == outcome(slowly, sent)


@given(texts, st.integers(0), st.binary(max_size=2), st.integers(0, 3))
def test_damaged_bytes_are_refused_alike(sent, at, put, n_removed):
    at %= len(sent) + 1
    damaged = sent[:at] + put + sent[at + n_removed :]
    assert outcome(quickly, damaged) == outcome(slowly, damaged)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
)


@given(any_json, st.booleans(), st.sampled_from([None, 1]))
def test_any_value_in_any_layout(value, is_ascii, indent):
    sent = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "surrogatepass")
    assert quickly(sent) == slowly(sent)


@pytest.mark.parametrize("n_digits", [19, 20, 4300, 4301])
def test_long_numbers(n_digits):
    for sent in (b"7" * n_digits, b"-" + b"7" * n_digits, b"[" + b"9" * n_digits + b"]"):
        assert outcome(quickly, sent) == outcome(slowly, sent)


@pytest.mark.parametrize("depth", [10, 400, 3000])
def test_deep_nests(depth):
    assert outcome(quickly, b"[" * depth + b"]" * depth) == outcome(slowly, b"[" * depth + b"]" * depth)


def test_floats_are_told_apart():
    assert not parse(b'{"a":[1,"1.5",true]}').may_have_floats
    for sent in (b"1.0", b"[1e5]", b'{"a":{"b":-0.0}}', b"NaN"):
        assert parse(sent).may_have_floats


def test_every_character():
    for characters in (range(0x7F), range(0x80), range(0xD800), range(0xE000, 0x11000)):
        sent = json.dumps([chr(n) for n in characters], ensure_ascii=False).encode()
        assert quickly(sent) == slowly(sent)
