from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kv_pipeline.sources import lines
from kv_pipeline.sources.transcripts.frames import transcript_frames
from kv_pipeline.sources.transcripts.reader import Transcript, read_transcript
from kv_pipeline_tests.sources.factories import make_record, make_transcript

EXAMPLES = sorted(Path("data/example").rglob("*.jsonl"))


def answer(message_id: str, **changes: Any) -> dict[str, Any]:
    return make_record(message={"id": message_id, "content": []}, **changes)


def read(tmp_path: Path, *records: Any, name: str = "s1.jsonl") -> Transcript:
    return read_transcript(make_transcript(tmp_path / name, records), f"ada/projects/{name}")


def messages(found: Transcript) -> list[str]:
    return [record.message_id for record in found.answers]


def reasons(found: Transcript) -> list[tuple[int | None, str]]:
    return [(skip.row, skip.reason) for skip in found.skips]


def test_an_answer_of_many_records_counts_once(tmp_path):
    found = read(tmp_path, answer("m1"), answer("m1"), answer("m2"), answer("m1"))
    assert [(record.message_id, record.line) for record in found.answers] == [("m1", 1), ("m2", 3)]
    assert found.skips == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(b'{"type":"assistant","mess\n', "broken_line", id="cut in the middle"),
        pytest.param(b"\x00" * 50 + b"\n", "broken_line", id="zeros"),
        pytest.param(b"Traceback (most recent call last)\n", "broken_line", id="text"),
        pytest.param(b'{"type":"assistant"}{"type":"assistant"}\n', "broken_line", id="two on a line"),
        pytest.param(b'{"type":"assistant","x":"\xff"\n', "broken_line", id="not UTF-8"),
        pytest.param(b'{"type":"assistant","message":' + b"[" * 99_999 + b"\n", "broken_line", id="too deep"),
        pytest.param(b'["assistant"]\n', "broken_line", id="a list"),
        pytest.param(b'{"type":"assistant","message":{}}\n', "no_message_id", id="no id"),
        pytest.param(b'{"type":"assistant"}\n', "no_message_id", id="no message"),
        pytest.param(b'{"type":"assistant","message":7}\n', "odd_record", id="odd message"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_used(tmp_path, line, reason):
    found = read(tmp_path, answer("m1"), line, answer("m2"))
    assert messages(found) == ["m1", "m2"]
    assert (2, reason) in reasons(found)
    assert {skip.row for skip in found.skips} == {2}
    assert all(skip.source == "ada/projects/s1.jsonl" and skip.found and skip.remedy for skip in found.skips)


@pytest.mark.parametrize("length", [1, 20, 60, -1])
def test_a_last_line_that_is_still_being_written_is_told_from_a_broken_one(tmp_path, length):
    found = read(tmp_path, answer("m1"), json.dumps(answer("m2")).encode()[:length])
    assert messages(found) == ["m1"]
    assert reasons(found) == [(2, "unfinished_line")]
    assert "Run again" in found.skips[0].remedy


def test_a_last_line_without_a_line_end_is_whole(tmp_path):
    found = read(tmp_path, answer("m1"), json.dumps(answer("m2")).encode())
    assert (messages(found), found.skips) == (["m1", "m2"], [])


def test_empty_lines_windows_line_ends_and_a_byte_order_mark_are_no_damage(tmp_path):
    lines = [b"\xef\xbb\xbf" + json.dumps(answer("m1")).encode() + b"\r\n", b"\n", b"  \r\n", answer("m2")]
    found = read(tmp_path, *lines)
    assert (messages(found), found.skips) == (["m1", "m2"], [])


def test_an_empty_file(tmp_path):
    assert read(tmp_path) == Transcript()


def test_very_long_lines_are_read_and_longer_ones_skipped_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 5000)
    long, longer = (answer(f"m{size}", padding='"assistant"' + "x" * size) for size in (4000, 40_000))
    found = read(tmp_path, answer("m1"), long, longer, answer("m2"))
    assert messages(found) == ["m1", "m4000", "m2"]
    assert reasons(found) == [(3, "long_line")]
    assert [record.line for record in found.answers] == [1, 2, 4]


@pytest.mark.parametrize("kind", ["missing", "folder", "dangling link"])
def test_a_file_that_can_not_be_read_is_one_skip(tmp_path, kind):
    path = tmp_path / "s1.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    found = read_transcript(path, "ada/s1")
    assert reasons(found) == [(None, "unreadable_file")]


@pytest.mark.parametrize("name", ["..", "../../etc/passwd", "a/b", "", ".tmp-1-x", "\u202e"], ids=ascii)
def test_no_session_id_climbs_out_of_the_store(tmp_path, name):
    found = read(tmp_path, answer("m1", sessionId=name), answer("m2", sessionId="s9"), name="agent-1.jsonl")
    for session_id in {record.session_id for record in found.answers}:
        assert "/" not in session_id
        assert not session_id.startswith(".")
        assert session_id.isascii()


def test_an_agents_session_is_that_of_its_records_or_of_its_folder(tmp_path):
    named = read(tmp_path, {"type": "fork-context-ref"}, answer("m1", sessionId=7), answer("m2"), name="agent-1.jsonl")
    assert [record.session_id for record in named.answers] == ["s1"]
    assert (2, "no_session_id") in reasons(named)
    by_folder = read(tmp_path, answer("m1", sessionId=None), name="s5/subagents/agent-1.jsonl")
    assert [record.session_id for record in by_folder.answers] == ["s5"]
    assert [(agent.session_id, agent.agent_id) for agent in by_folder.agents] == [("s5", "1")]


def test_the_clients_own_words_are_no_answers(tmp_path):
    synthetic = make_record(message={"id": "m1", "model": "<synthetic>"})
    found = read(tmp_path, synthetic, make_record(message={}, isApiErrorMessage=True))
    assert (found.answers, found.skips) == ([], [])


def test_a_compaction_counts_once_however_often_it_is_copied(tmp_path):
    boundary = make_record(
        "system", subtype="compact_boundary", compactMetadata={"trigger": "auto", "preTokens": 2**63}
    )
    other = boundary | {"timestamp": "2025-01-01T01:00:00.000Z", "uuid": "u9"}
    found = read(tmp_path, boundary, boundary, boundary | {"uuid": "copy"}, other)
    assert [(each.line, each.trigger, each.pre_tokens) for each in found.compactions] == [
        (1, "auto", None),
        (4, "auto", None),
    ]


@pytest.mark.parametrize(
    "meta", [b"", b"{", b"[]", b"\xff", b"[" * 99_999], ids=["empty", "cut", "list", "bytes", "deep"]
)
def test_a_broken_meta_file_is_noticed_and_the_agent_stays(tmp_path, meta):
    (tmp_path / "agent-1.meta.json").write_bytes(meta)
    found = read(tmp_path, answer("m1"), name="agent-1.jsonl")
    assert [(agent.agent_id, agent.meta) for agent in found.agents] == [("1", None)]
    assert [(skip.reason, skip.is_left_out) for skip in found.skips] == [("broken_meta", False)]


# Mutated lines of the example ----------------------------------------------------------------------------------------

LINES = [line for path in EXAMPLES for line in path.read_bytes().splitlines(keepends=True)]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.just([])
    | st.just({})
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, item in inner for found in paths_of(item, (*path, key))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    line = draw(st.sampled_from(LINES))
    kind = draw(st.sampled_from(["as it is", "cut", "bytes", "value", "any"]))
    if kind == "cut":
        return line[: draw(st.integers(0, len(line)))] + draw(st.sampled_from([b"", b"\n"]))
    if kind == "bytes":
        at = draw(st.integers(0, len(line)))
        return line[:at] + draw(st.binary(max_size=5)) + line[at + draw(st.integers(0, 5)) :]
    if kind == "value":
        record = json.loads(line)
        changed = replaced(record, draw(st.sampled_from(paths_of(record))), draw(VALUES))
        return json.dumps(changed).encode() + b"\n"
    return draw(st.binary(max_size=60)) if kind == "any" else line


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(lines=st.lists(mutated(), max_size=6), name=st.sampled_from(["s1.jsonl", "agent-1.jsonl"]))
def test_whatever_the_lines_hold_nothing_raises_and_tables_take_it(tmp_path, lines, name):
    found = read(tmp_path, *lines, name=name)
    frames = transcript_frames([found, found])
    assert frames.answers.height == len(found.answers)  # a session that stands in two files counts once
    n_lines = b"".join(lines).count(b"\n") + 1
    assert all(skip.row is None or 1 <= skip.row <= n_lines for skip in found.skips)


def test_the_example_itself_needs_no_notice():
    assert len(EXAMPLES) > 10
    assert [skip for path in EXAMPLES for skip in read_transcript(path, path.name).skips] == []


def diagnosed(message_id: str, diagnostics: Any) -> dict[str, Any]:
    record = answer(message_id)
    return {**record, "message": {**record["message"], "diagnostics": diagnostics}}


def test_the_apis_diagnosis_is_the_first_that_a_message_has(tmp_path):
    miss = {"type": "tools_changed", "cache_missed_input_tokens": 900}
    later = {"cache_miss_reason": {"type": "model_changed"}}
    found = read(tmp_path, answer("m1"), diagnosed("m1", {"cache_miss_reason": miss}), diagnosed("m1", later))
    assert [(a.cache_miss_reason, a.cache_missed_input_tokens) for a in found.answers] == [("tools_changed", 900)]


@pytest.mark.parametrize(
    ("diagnostics", "reason"),
    [
        (None, None),
        ("text", None),
        ([], None),
        ({}, None),
        ({"cache_miss_reason": None}, None),
        ({"cache_miss_reason": 7}, None),
        ({"cache_miss_reason": {"type": "something_new"}}, "other"),
        ({"cache_miss_reason": {"type": 7, "cache_missed_input_tokens": -1}}, None),
    ],
)
def test_diagnoses_of_any_form(tmp_path, diagnostics, reason):
    (found,) = read(tmp_path, diagnosed("m1", diagnostics)).answers
    assert (found.message_id, found.cache_miss_reason, found.cache_missed_input_tokens) == ("m1", reason, None)
