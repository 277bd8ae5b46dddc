from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.sources.har import entries
from kv_pipeline.sources.har.entries import HarError, entries_of
from kv_pipeline_tests.strategies import json_values


def split(text: str | bytes) -> list[bytes]:
    return list(entries_of(io.BytesIO(text.encode() if isinstance(text, str) else text)))


def reason_of(text: str) -> tuple[int, str]:
    """How many entries come before what is wrong, and what it is."""
    found = entries_of(io.BytesIO(text.encode()))
    n_entries = 0
    with pytest.raises(HarError) as caught:
        for _ in found:
            n_entries += 1
    return n_entries, caught.value.reason


@pytest.mark.parametrize("odd", ["7", "null", '"x"', '"a, b"', "[1, {}]"])
def test_what_is_no_object_leaves_its_neighbours_alone(odd):
    assert split(f'{{"log": {{"entries": [{{"a": 1}}, {odd} , {{"b": 2}}]}}}}')[::2] == [b'{"a": 1}', b'{"b": 2}']


objects = st.dictionaries(st.text(max_size=4), json_values, max_size=4)


@given(st.lists(objects, max_size=5), st.integers(1, 64), st.sampled_from([None, 1]), st.booleans())
def test_entries_are_those_that_json_has(listed, read_bytes, indent, is_ascii):
    text = json.dumps(
        {"log": {"creator": 'x"entries":[', "entries": listed, "z": 1}}, indent=indent, ensure_ascii=is_ascii
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "_READ_BYTES", read_bytes)
        assert [json.loads(entry) for entry in split(text.encode("utf-8", "surrogatepass"))] == listed


@given(st.lists(objects, min_size=1, max_size=4), st.data())
def test_a_file_that_is_cut_off_gives_whole_entries_and_says_so(listed, data):
    whole = json.dumps({"log": {"entries": listed}})
    cut = whole[: data.draw(st.integers(len('{"log": {"entries": ['), len(whole) - 4))]
    found, reason = [], ""
    try:
        found.extend(map(json.loads, entries_of(io.BytesIO(cut.encode()))))
    except HarError as error:
        reason = error.reason
    assert reason == "cut_off_file"
    assert found == listed[: len(found)]
    assert (
        len(found) >= len(listed) - 1
        or len(json.dumps({"log": {"entries": listed[: len(found) + 1]}})) - 4 >= len(cut) - 1
    )


@given(st.binary(max_size=60))
def test_any_bytes_end(garbage):
    try:
        found = split(b'{"log":{"entries":[' + garbage)
    except HarError as error:
        assert error.reason == "cut_off_file"
    else:
        assert b"]" in garbage
        assert sum(map(len, found)) <= len(garbage)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, "not_a_har")),
        ("{}", (0, "not_a_har")),
        ('{"log": {"entries": {}}}', (0, "not_a_har")),
        ('{"log": {"entries": [', (0, "cut_off_file")),
        ('{"log": {"entries": [{"a": 1}, {"b": "x', (1, "cut_off_file")),
        ('{"log": {"entries": [{"a": 1}}', (1, "cut_off_file")),
    ],
)
def test_what_is_wrong_with_a_file(text, expected):
    assert reason_of(text) == expected


def test_an_entry_that_is_too_long_ends_the_reading(monkeypatch):
    monkeypatch.setattr(entries, "MAX_ENTRY_BYTES", 3000)
    monkeypatch.setattr(entries, "_READ_BYTES", 100)
    assert reason_of(json.dumps({"log": {"entries": [{"a": 1}, {"b": "x" * 9000}]}})) == (1, "long_entry")
