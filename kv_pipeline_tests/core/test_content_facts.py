from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from kv_pipeline.core.content_facts import head_facts, message_facts
from kv_pipeline_tests.strategies import json_values

REMINDER = {"type": "text", "text": "<system-reminder>\nThe branch is main.\n</system-reminder>\n"}
HEADER = "x-anthropic-billing-header: cc_version=2.1.329.{}; cc_entrypoint=cli; {}"


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def facts(content: object, role: str = "user") -> dict[str, Any]:
    return message_facts([json.dumps({"role": role, "content": content})]).row(0, named=True)


@pytest.mark.parametrize(
    "other",
    [
        "Hello.",
        [text("Hello."), REMINDER],
        [{"text": "Hello.", "type": "text"}],
        [{"type": "thinking", "thinking": "Well."}, text("Hello.")],
    ],
    ids=["a string", "a reminder", "order of keys", "thinking"],
)
def test_how_a_message_is_said_does_not_matter(other):
    assert facts(other)["identity"] == facts([text("Hello.")])["identity"]


@pytest.mark.parametrize(
    ("content", "role"), [("Hello!", "user"), ("Hello.", "assistant"), ([text("Hello."), text("x")], "user")]
)
def test_what_is_said_and_by_whom_does(content, role):
    assert facts(content, role)["identity"] != facts("Hello.")["identity"]


def test_a_result_is_the_same_as_string_and_as_list():
    results = [{"type": "tool_result", "tool_use_id": "u1", "content": said} for said in ("x", [text("x")])]
    assert facts([results[0]])["identity"] == facts([results[1]])["identity"]
    assert facts([results[0]])["results"] == ["u1"]


def test_a_call_has_the_digest_of_its_prompt():
    call = {"type": "tool_use", "id": "u1", "name": "Task", "input": {"prompt": "Look.", "subagent_type": "Explore"}}
    other = {"type": "tool_use", "id": "u2", "name": "Read", "input": {"prompt": "Look."}}
    (made,) = facts([call, other], "assistant")["calls"]
    assert made == {
        "tool_use_id": "u1",
        "prompt": facts([REMINDER, text("Look.")])["texts"][0],
        "subagent_type": "Explore",
    }


def test_marks():
    said = {
        "is_fork": "<fork-boilerplate>\nYou are a worker fork.",
        "is_warmup": "Warmup",
        "is_continuation": "This session is being continued from a previous conversation that ran out of context.",
        "asks_for_summary": "CRITICAL.\n\nYour task is to create a detailed summary of the conversation so far, paying",
    }
    for name, words in said.items():
        found = facts([REMINDER, text(words)])
        assert [mark for mark in said if found[mark]] == [name]


def test_a_system_prompt_is_known_without_its_billing_header():
    blocks = [text("Be brief.")]
    heads = [
        [text(HEADER.format("d87", "")), *blocks],
        [text(HEADER.format("c96", "cc_is_subagent=true;")), *blocks],
        blocks,
    ]
    found = [head_facts(json.dumps(head)) for head in heads]
    assert len({head.identity for head in found}) == 1
    assert [head.is_subagent for head in found] == [False, True, False]
    assert head_facts('"Be brief."').identity != found[0].identity


@given(json_values)
def test_any_json_has_facts(value):
    assert message_facts([json.dumps(value), json.dumps({"role": value, "content": value})]).height == 2
    assert head_facts(json.dumps(value)).n_characters > 0
