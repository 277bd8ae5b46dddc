"""Damage: nothing crashes, and an answer that structure knows has a request or a notice that says why not."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.sources import lines
from kv_pipeline.sources.transcript_requests.drafts import Wanted
from kv_pipeline.sources.transcript_requests.reader import SessionFile
from kv_pipeline.sources.transcripts.reader import read_transcript
from kv_pipeline_tests.sources.transcript_requests.script import (
    Read,
    Script,
    call,
    read_files,
    read_scripts,
    result,
    text,
)
from kv_pipeline_tests.sources.transcript_requests.test_recorded import recorded

EXAMPLES = sorted(Path("data/example").rglob("*.jsonl"))
ODD: list[Any] = [None, True, 5, -1, 1.5, 2**70, "x", "", [], [1], {}, {"a": 1}, [[{}]]]


def read_as_structure_says(path: Path) -> tuple[list[str], Read]:
    """Answers that the reader of structure finds in a file, and what is made of them."""
    found = read_transcript(path, path.name)
    wanted = {answer.message_id: Wanted("s1", answer.agent_id, "main") for answer in found.answers}
    told = frozenset(skip.row for skip in found.skips if skip.is_left_out)
    return list(wanted), read_files([SessionFile(path.name, path, told)], wanted)


def assert_nothing_is_lost(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s1.jsonl"
        path.write_bytes(content)
        answers, read = read_as_structure_says(path)
    lost = set(answers) - set(read.rows["message_id"])
    assert not lost or any(skip.is_left_out for skip in read.recording.skips)
    for segments in read.rows["message_segments"]:
        assert all(index < read.segments.height for index in segments)


def example() -> bytes:
    script = recorded()
    script.attachment("<system-reminder>x</system-reminder>", "system")
    script.user(
        [result("c"), {"type": "image", "source": {"type": "base64", "data": "AAAA", "media_type": "image/png"}}]
    )
    script.answer("m3", [text("x"), call("d")], requestRef="none")
    return b"".join(json.dumps(record).encode() + b"\n" for record in script.records)


@given(seed=st.integers(0, 2**32), n=st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_changed_bytes(seed, n):
    rng, content = random.Random(seed), bytearray(example())  # noqa: S311
    for _ in range(n):
        content[rng.randrange(len(content))] = rng.choice(b'\x00\n{}[]",:0a\xff')
    assert_nothing_is_lost(bytes(content))


@given(cut=st.integers(0, 6000), repeated=st.integers(0, 6000))
@settings(max_examples=40, deadline=None)
def test_cut_and_repeated(cut, repeated):
    content = example()
    assert_nothing_is_lost(content[:cut] + content[repeated : repeated + 500] + content[cut:])


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, inner in items for found in _paths(inner, (*path, key))]


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_any_value_anywhere(data):
    records = [json.loads(line) for line in example().splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        record: Any = data.draw(st.sampled_from(records))
        *way, last = data.draw(st.sampled_from([path for path in _paths(record) if path] or [("type",)]))
        for step in way:
            record = record[step]
        record[last] = json.loads(json.dumps(data.draw(st.sampled_from(ODD))))
    assert_nothing_is_lost(b"".join(json.dumps(record).encode() + b"\n" for record in records))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem[:12])
def test_example_is_read_whole(path):
    answers, read = read_as_structure_says(path)
    assert sorted(answers) == sorted(read.rows["message_id"])
    assert EXAMPLES


def test_an_answer_without_a_time_is_left_out(tmp_path):
    script = Script()
    script.user("go")
    script.answer("m1", [text("hi")])
    script.records[-1]["timestamp"] = "yesterday"
    read = read_scripts(tmp_path, script)
    assert read.rows.is_empty()
    assert [(skip.row, skip.reason, skip.is_left_out) for skip in read.recording.skips] == [(2, "bad_timestamp", True)]


def test_a_broken_record_of_a_request_is_told(tmp_path):
    script = recorded()
    script.records.insert(3, b'{"type":"api-request-blob","hash"\n')
    assert ("s1.jsonl", 4, "broken_content") in read_scripts(tmp_path, script).reasons


def test_lines_that_are_too_long_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2000)
    script = Script()
    script.user("go")
    script.user("x" * 5000)
    script.answer("m1", [text("hi")])
    read = read_scripts(tmp_path, script)
    assert read.messages("m1") == [{"role": "user", "content": [text("go")]}]
    assert read.reasons == [("s1.jsonl", 3, "unknown_parent")]


def test_content_that_is_nested_too_deeply_costs_its_answer_only(tmp_path):
    script = Script()
    script.user("go")
    script.answer("m1", [text("hi")])
    deep = "[" * 3000 + "]" * 3000
    script.records[-1] = json.dumps(script.records[-1]).replace('"text": "hi"', f'"text": {deep}')
    script.user("more")
    script.answer("m2", [text("hi")])
    read = read_files([script.write(tmp_path)], {"m2": Wanted("s1", "main", "main")})
    assert read.rows["message_id"].to_list() == ["m2"]


def test_repeated_trouble_is_told_once_with_its_number(tmp_path):
    script = Script()
    script.user("go")
    for number in range(5):
        script.answer(f"m{number}", [text("hi")], requestRef="none")
    (skip,) = read_scripts(tmp_path, script).recording.skips
    assert (skip.row, skip.reason) == (2, "request_not_recorded")
    assert "5 times" in skip.found
