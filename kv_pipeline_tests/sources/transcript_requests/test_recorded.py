"""Requests that a client recorded: rebuilt, verified, and what happens when they can't be."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline_tests.sources.transcript_requests.script import (
    PARAMS,
    SHAPE,
    Json,
    Script,
    call,
    read_scripts,
    result,
    text,
    wire,
)

OPENING: Json = {"role": "user", "content": [text("<system-reminder>\nHello.\n</system-reminder>"), text("go")]}
NOTICE: Json = {"role": "system", "content": [text("A place.")], "output_config": {"effort": "low"}}
FIRST: Json = {"role": "assistant", "content": [text("reading"), call("a"), call("b")]}
RESULTS: Json = {"role": "user", "content": [result("b"), result("a", "naïve ☂ 1.0")]}


def recorded(**first: Any) -> Script:
    """Two requests: the messages of the first are recorded whole, those that the second adds are not."""
    script = Script()
    script.user("go")
    script.shape()
    script.blob(OPENING)
    script.blob(NOTICE)
    script.request("q1", [OPENING, NOTICE], **first)
    _, a, b = script.answer("m1", FIRST["content"], requestRef="q1")
    script.user([RESULTS["content"][0]], parent=b)
    script.user([RESULTS["content"][1]], parent=a)
    script.request("q2", [OPENING, NOTICE, FIRST, RESULTS], base="q1", keep=2)
    script.answer("m2", [text("done")], requestRef="q2")
    return script


def line_of(script: Script, kind: str, number: int = 0) -> int:
    return [i for i, record in enumerate(script.records) if record["type"] == kind][number]


def exactness(read: Any) -> dict[str, str]:
    return dict(read.rows.select("message_id", "exactness").iter_rows())


def test_requests_are_what_was_sent(tmp_path):
    read = read_scripts(tmp_path, recorded())
    assert exactness(read) == {"m1": "rebuilt", "m2": "rebuilt"}
    assert read.messages("m1") == [OPENING, wire(NOTICE, is_marked=True)]
    assert read.messages("m2") == [OPENING, wire(NOTICE, is_marked=False), FIRST, RESULTS]
    row = read.row("m2")
    assert read.text_of(row["tools_segment"]) == SHAPE["tools"]
    assert read.text_of(row["system_segment"]) == SHAPE["system"]
    assert [tuple(mark.values()) for mark in row["breakpoints"]] == [
        ("system", None, 1, "5m"), ("messages", 3, 1, "5m"),
    ]  # fmt: skip
    assert row["thinking_id"] is not None
    assert str(row["requested_at_utc"]) == "2026-03-02 08:00:06.500000+00:00"
    assert read.reasons == []


def test_a_notice_keeps_its_other_keys(tmp_path):
    assert read_scripts(tmp_path, recorded()).messages("m2")[1]["output_config"] == {"effort": "low"}


def altered(kind: str, number: int, **changes: Any) -> Script:
    script = recorded()
    script.records[line_of(script, kind, number)].update(changes)
    return script


def without(kind: str, number: int = 0) -> Script:
    script = recorded()
    del script.records[line_of(script, kind, number)]
    return script


@pytest.mark.parametrize(
    ("script", "reasons", "rebuilt"),
    [
        pytest.param(altered("api-request", 1, requestDigest="0" * 64), ["digest_mismatch"], ["m1"], id="digest"),
        pytest.param(altered("api-request", 1, params={**PARAMS, "x": 1}), ["digest_mismatch"], ["m1"], id="params"),
        pytest.param(altered("api-request", 1, keep=1), ["digest_mismatch"], ["m1"], id="fewer kept"),
        pytest.param(altered("api-request", 1, keep=3), ["unknown_base"], ["m1"], id="more kept than there were"),
        pytest.param(altered("api-request", 1, base="q9"), ["unknown_base"], ["m1"], id="no such base"),
        pytest.param(altered("api-request", 1, base="q2"), ["unknown_base"], ["m1"], id="its own base"),
        pytest.param(altered("api-request", 1, tail=["0" * 64]), ["unknown_message"], ["m1"], id="no such message"),
        pytest.param(altered("api-request", 1, shapeHash="0" * 64), ["unknown_shape"], ["m1"], id="no such shape"),
        pytest.param(altered("api-request", 1, params=[1]), ["odd_request_record"], ["m1"], id="params are a list"),
        pytest.param(altered("api-request", 1, cacheControl=5), ["odd_request_record"], ["m1"], id="odd breakpoints"),
        pytest.param(
            altered("api-request", 1, cacheControl=[{"path": ["messages", 99, "content", 0], "value": {}}]),
            ["digest_mismatch"], ["m1"], id="a breakpoint beyond the end",
        ),
        pytest.param(
            altered("api-request", 1, id=None), ["odd_request_record", "request_not_recorded"], ["m1"], id="no id"
        ),
        pytest.param(without("api-request", 1), ["request_not_recorded"], ["m1"], id="request missing"),
        pytest.param(without("api-request", 0), ["request_not_recorded", "unknown_base"], [], id="base missing"),
        pytest.param(without("api-request-shape"), ["unknown_shape"], [], id="shape missing"),
        pytest.param(without("api-request-blob"), ["unknown_message"], [], id="message missing"),
        pytest.param(
            altered("api-request-shape", 0, shape={**SHAPE, "tools": []}), ["hash_mismatch", "unknown_shape"], [],
            id="another shape",
        ),
        pytest.param(
            altered("api-request-shape", 0, shape=[]), ["odd_request_record", "unknown_shape"], [], id="odd shape"
        ),
        pytest.param(
            altered("api-request-blob", 0, message={**OPENING, "role": "x"}), ["hash_mismatch", "unknown_message"], [],
            id="another message",
        ),
        pytest.param(
            altered("api-request-blob", 0, message=7), ["odd_request_record", "unknown_message"], [], id="no message"
        ),
    ],
)  # fmt: skip
def test_what_is_not_verified_is_approximate_and_noted(tmp_path, script, reasons, rebuilt):
    read = read_scripts(tmp_path, script)
    assert sorted(reason for _, _, reason in read.reasons) == reasons
    assert [name for name, kind in exactness(read).items() if kind == "rebuilt"] == rebuilt
    assert read.rows["message_id"].to_list() == ["m1", "m2"]
    assert not any(skip.is_left_out for skip in read.recording.skips)


def test_without_a_digest_of_the_whole_those_of_its_messages_count(tmp_path):
    script = recorded(requestDigest=None)
    assert set(exactness(read_scripts(tmp_path, script)).values()) == {"rebuilt"}


def test_a_request_of_an_agent_whose_messages_do_not_fit_has_its_tools_all_the_same(tmp_path):
    read = read_scripts(tmp_path, altered("api-request", 1, tail=["0" * 64]))
    row = read.row("m2")
    assert read.text_of(row["tools_segment"]) == SHAPE["tools"]
    assert row["breakpoints"][0]["section"] == "system"


def test_where_only_verified_requests_are_wanted_others_are_left_out(tmp_path):
    read = read_scripts(tmp_path, altered("api-request", 1, keep=1), may_be_approximate=False)
    assert read.rows["message_id"].to_list() == ["m1"]
    assert [(skip.reason, skip.is_left_out) for skip in read.recording.skips] == [("digest_mismatch", True)]


def test_a_fork_has_the_tools_of_the_thread_it_continues(tmp_path):
    main = recorded()
    last = main.records[line_of(main, "assistant", 3)]["parentUuid"]
    fork = Script(agent_id="fork")
    fork.records.append({"type": "fork-context-ref", "parentSessionId": "s1", "parentLastUuid": last})
    fork.user("your part", parent=None)
    fork.answer("m3", [text("done")], requestRef="not recorded")
    read = read_scripts(tmp_path, main, fork)
    assert read.text_of(read.row("m3")["tools_segment"]) == SHAPE["tools"]
    assert read.reasons == [("agent-fork.jsonl", 3, "request_not_recorded")]


@pytest.mark.parametrize("n", [40])
def test_a_long_chain_of_requests_is_followed_to_its_start(tmp_path, n):
    """The answers are read after all requests were: none is at hand any more."""
    script, messages = Script(), list[Json]()
    script.shape()
    for number in range(n):
        added = {"role": "user", "content": [text(f"prompt {number}"), text("go")]}
        script.blob(added)
        messages = [*messages, added]
        script.request(f"q{number}", messages, base=f"q{number - 1}" if number else None, keep=number)
    for number in (n - 1, 0, n // 2):
        script.answer(f"m{number}", [text("hi")], requestRef=f"q{number}")
    read = read_scripts(tmp_path, script)
    assert set(exactness(read).values()) == {"rebuilt"}
    assert read.messages(f"m{n - 1}") == messages
    assert read.messages(f"m{n // 2}") == messages[: n // 2 + 1]


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@given(inputs=st.lists(VALUES, min_size=1, max_size=5), prompts=st.lists(WORDS, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_content_is_verified(inputs, prompts):
    """Messages that no record holds whole are put together from their records, whatever is in them."""
    script, messages = Script(), list[Json]()
    script.shape()
    for number, prompt in enumerate(prompts):
        value = inputs[number % len(inputs)]
        script.user(prompt)
        messages = [*messages, {"role": "user", "content": [text(prompt)]}]
        base = f"q{number - 1}" if number else None
        script.request(f"q{number}", messages, base=base, keep=max(0, 2 * number - 1) if number else 0)
        said = [text("so"), {"type": "tool_use", "id": f"u{number}", "name": "x", "input": {"v": value}}]
        script.answer(f"m{number}", said, requestRef=f"q{number}")
        messages = [*messages, {"role": "assistant", "content": said}]
    with tempfile.TemporaryDirectory() as folder:
        read = read_scripts(Path(folder), script)
    assert set(exactness(read).values()) == {"rebuilt"}
    assert read.reasons == []
    for number in range(len(prompts)):
        asked = messages[: 2 * number + 1]
        expected = [wire(m, is_marked=i == 2 * number) for i, m in enumerate(asked)]
        assert read.messages(f"m{number}") == json.loads(json.dumps(expected))
