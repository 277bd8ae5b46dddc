from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from kv_pipeline.sources.anthropic_messages.answer import Answer, Usage
from kv_pipeline.sources.claude_code_proxy.answer import parse_answer
from kv_pipeline_tests.sources.factories import make_response

START = {
    "type": "message_start",
    "message": {"id": "msg_1", "usage": {"input_tokens": 5, "cache_read_input_tokens": 7}},
}
TEXT = {"type": "content_block_start", "content_block": {"type": "text"}}
TOOL = {"type": "content_block_start", "content_block": {"type": "tool_use"}}
END = {
    "type": "message_delta",
    "delta": {"stop_reason": "tool_use"},
    "usage": {"output_tokens": 9, "input_tokens": None},
}


def answer(**response) -> Answer:
    return parse_answer(json.dumps({"statusCode": 200} | response).encode())


def streamed(*events, **response) -> Answer:
    lines = [event if isinstance(event, str) else "data: " + json.dumps(event) for event in events]
    return answer(streamingChunks=lines, **response)


def test_a_plain_answer():
    found = parse_answer(make_response().encode())
    assert (found.outcome, found.message_id, found.stop_reason, found.output_types) == (
        "ok",
        "msg_1",
        "end_turn",
        ("text",),
    )
    assert found.usage == Usage(10, 2, 0, 0, 0)
    assert found.api_time_s == 1.5


def test_a_streamed_answer_is_what_its_events_say_not_its_stored_body():
    found = streamed(START, TEXT, TOOL, END, body={"id": "msg_other", "stop_reason": ""})
    assert (found.outcome, found.message_id, found.stop_reason) == ("ok", "msg_1", "tool_use")
    assert found.output_types == ("text", "tool_use")
    assert found.usage == Usage(5, 9, 7, 0, 0)


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        pytest.param((START, TEXT), "aborted", id="no end"),
        pytest.param((START, TEXT, 'data: {"type":"message_del'), "aborted", id="half-written end"),
        pytest.param((START, {"type": "message_stop"}), "ok", id="only the stop"),
        pytest.param((TEXT, END), "ok", id="no start"),
        pytest.param(
            ("event: ping", "", "data: [1]", "data: null", "data: " + "[" * 9999), "error", id="nothing usable"
        ),
        pytest.param(({"type": "error", "error": {}},), "error", id="error event"),
    ],
)
def test_outcome_of_a_stream(events, outcome):
    assert streamed(*events).outcome == outcome


@pytest.mark.parametrize("raw", [None, b"null"], ids=["NULL", "JSON null"])
def test_no_response(raw):
    assert parse_answer(raw) == Answer()


@pytest.mark.parametrize(
    "raw",
    [b"", b"upstream timed out", b'{"statusCode":200,"bo', b'"{}"', b"[]", b"3", b"\xff\xfe", b"{\x00}"],
    ids=["empty", "error text", "half-written", "a string", "a list", "a number", "bytes", "zeros"],
)
def test_what_is_no_response_is_a_value_error(raw):
    with pytest.raises(ValueError, match=r"."):
        parse_answer(raw)


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        pytest.param({"statusCode": 529, "body": {"type": "error"}}, "error", id="refused"),
        pytest.param({"statusCode": 529, "body": {"id": "msg_1"}}, "error", id="refused with a body"),
        pytest.param({"statusCode": "200", "body": "text"}, "error", id="odd types"),
        pytest.param({"statusCode": 10**12, "body": {"id": "msg_1"}}, "ok", id="a status that no column holds"),
        pytest.param({"body": {"id": 7, "content": "x", "usage": [1]}}, "ok", id="odd fields of a message"),
        pytest.param({"streamingChunks": [1, None, {}]}, "error", id="chunks that are no text"),
    ],
)
def test_outcome_of_odd_responses(response, outcome):
    found = answer(**response)
    assert found.outcome == outcome
    assert found.status_code in {None, 200, 529}


@pytest.mark.parametrize("value", [-1, 2**63, 10**30, True, "12", [3], {}, 1.5, None], ids=repr)
def test_a_count_that_can_be_none_counts_as_not_said(value):
    found = answer(body={"id": "m", "usage": {"input_tokens": value, "output_tokens": 4.0}})
    assert (found.usage.input_tokens, found.usage.output_tokens) == (0, 4)


def test_writes_are_split_by_lifetime():
    split = {"ephemeral_1h_input_tokens": 30}
    found = answer(body={"id": "m", "usage": {"cache_creation_input_tokens": 100, "cache_creation": split}})
    assert (found.usage.cache_write_5m_tokens, found.usage.cache_write_1h_tokens) == (70, 30)


@pytest.mark.parametrize(
    ("headers", "ttft_s"),
    [
        ({"Server-Timing": ["x;dur=1250.5"]}, 1.2505),
        ({"x-envoy-upstream-service-time": "300"}, 0.3),
        ({"X-Envoy-Upstream-Service-Time": []}, None),
        ({"server-timing": ["dur=..."]}, None),
        ([1], None),
    ],
    ids=["server-timing", "envoy", "empty", "no number", "no headers"],
)
def test_time_to_first_token(headers, ttft_s):
    assert answer(headers=headers).ttft_s == ttft_s


@pytest.mark.parametrize("value", [-1, 1e300, "soon", None, [], 10**400], ids=lambda value: str(value)[:8])
def test_a_duration_that_can_not_be_is_none(value):
    assert answer(responseTime=value).api_time_s is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2025-01-01T02:00:00+02:00", datetime(2025, 1, 1, tzinfo=UTC)), ("never", None), (5, None)],
)
def test_completion(value, expected):
    assert answer(completedAt=value).completed_at_utc == expected


def test_text_that_no_table_holds_is_repaired():
    found = parse_answer(b'{"body":{"id":"m\\ud800","content":[{"type":"t\\udfff"},{"type":[1]},5]}}')
    assert (found.message_id, found.output_types) == ("m?", ("t?",))


def missed(reason: object, tokens: object = 5) -> dict[str, object]:
    return {"diagnostics": {"cache_miss_reason": {"type": reason, "cache_missed_input_tokens": tokens}}}


@pytest.mark.parametrize(
    ("said", "reason", "tokens"),
    [
        ({}, None, None),
        (missed("tools_changed", 120), "tools_changed", 120),
        (missed("unavailable", None), "unavailable", None),
        (missed("weather_changed"), "other", 5),
        (missed(3, -1), None, None),
        (missed([], "7"), None, None),
        ({"diagnostics": {"cache_miss_reason": None}}, None, None),
        ({"diagnostics": {"cache_miss_reason": "tools_changed"}}, None, None),
        ({"diagnostics": [1]}, None, None),
    ],
)
def test_why_the_cache_was_missed(said, reason, tokens):
    start = {"type": "message_start", "message": START["message"] | said}
    delta = END | {"delta": {"stop_reason": "end_turn"} | said}
    found = (
        answer(body={"id": "m"} | said),
        streamed(start, END),
        streamed(START, END | said),
        streamed(START, delta),
        streamed(start, END | {"diagnostics": None}),
    )
    assert {(one.cache_miss_reason, one.cache_missed_input_tokens) for one in found} == {(reason, tokens)}


def test_what_the_later_event_says_of_the_miss_counts():
    start = {"type": "message_start", "message": START["message"] | missed("unavailable")}
    assert streamed(start, END | missed("model_changed", 9)).cache_miss_reason == "model_changed"


@pytest.mark.parametrize(
    ("management", "has_edits"),
    [
        (None, False),
        ({"applied_edits": []}, False),
        ({"applied_edits": {"type": "x"}}, False),
        ({"applied_edits": [{"type": "clear_tool_uses_20250919"}]}, True),
    ],
)
def test_whether_the_context_was_edited(management, has_edits):
    said = {"context_management": management}
    start = {"type": "message_start", "message": START["message"] | said}
    found = (
        answer(body={"id": "m"} | said),
        streamed(START, END | said),
        streamed(start, END | {"context_management": {"applied_edits": []}}),
    )
    assert {one.has_applied_edits for one in found} == {has_edits}


@pytest.mark.parametrize(
    ("names", "tools"),
    [
        ([], ()),
        (["Write", "Read", "Read"], ("Read", "Write")),
        (["mcp__bank__transfer", "mcp__other", "Edit"], ("Edit", "other")),
        ([7, None], ("other",)),
    ],
)
def test_tools_are_named_only_where_every_client_has_them(names, tools):
    blocks = [{"type": "text", "name": "Bash"}, *({"type": "tool_use", "name": name} for name in names)]
    events = [{"type": "content_block_start", "index": n, "content_block": block} for n, block in enumerate(blocks)]
    assert answer(body={"id": "m", "content": blocks}).tools == tools
    assert streamed(START, *events, END).tools == tools
