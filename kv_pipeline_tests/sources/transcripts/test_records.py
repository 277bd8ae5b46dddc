from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kv_pipeline.sources.lenient import decode_leniently
from kv_pipeline.sources.transcripts.records import AgentInput, AgentMeta, AgentResult, decode_blocks, decode_record
from kv_pipeline_tests.sources.factories import make_record

ODD: list[Any] = [None, True, 5, 2**63, 2**70, -1, 1.5, "x", [], ["x"], {}, {"a": 1}]
FIELDS = [
    "subtype", "sessionId", "agentId", "isSidechain", "isApiErrorMessage", "timestamp", "uuid", "parentUuid",
    "compactMetadata", "toolUseResult", "unknown",
]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("field", FIELDS)
def test_an_odd_field_costs_that_field_only(field, value):
    record = decode_record(json.dumps(make_record(**{field: value})).encode()).record
    assert record.type == "assistant"
    assert record.message is not None
    assert record.message.id == "msg_1"
    assert field == "sessionId" or record.session_id == "s1"
    assert field == "timestamp" or record.timestamp == "2025-01-01T00:00:00.000Z"


@pytest.mark.parametrize("field", ["model", "stop_reason", "content"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_an_odd_field_of_the_message_costs_that_field_only(field, value):
    message = {"id": "msg_1", "model": "m", "content": [1]} | {field: value}
    found = decode_record(json.dumps(make_record(message=message)).encode()).record.message
    assert found is not None
    assert found.id == "msg_1"
    assert json.loads(bytes(found.content)) == message["content"]


def test_whether_a_record_was_odd_is_told():
    assert not decode_record(json.dumps(make_record()).encode()).is_odd
    assert decode_record(json.dumps(make_record(isSidechain="yes")).encode()).is_odd


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'"x"', b"5", b"\xff", b"{}{}", b"\x00" * 9], ids=repr)
def test_what_is_no_object_is_an_error(line):
    with pytest.raises(msgspec.MsgspecError):
        decode_record(line)


def test_an_odd_block_costs_that_block_only():
    blocks = [{"type": "tool_use", "id": "t1", "name": "Agent"}, 5, {"type": 7, "id": "t2"}, {"type": "text"}]
    assert [(block.type, block.id) for block in decode_blocks(json.dumps(blocks).encode())] == [
        ("tool_use", "t1"), ("", "t2"), ("text", None)]  # fmt: skip
    assert decode_blocks(b'"plain text"') == []


@pytest.mark.parametrize("value", [1.5, "many", -1, 2**63, [1]], ids=repr)
def test_a_count_that_no_table_holds_counts_as_not_said(value):
    raw = json.dumps({"agentId": "a1", "totalTokens": value, "totalDurationMs": 7}).encode()
    assert decode_leniently(raw, AgentResult) == AgentResult(agent_id="a1", total_duration_ms=7)


def test_odd_meta_and_input():
    assert decode_leniently(b'{"agentType":5,"toolUseId":"t1","isFork":"no"}', AgentMeta) == AgentMeta(tool_use_id="t1")
    assert decode_leniently(b'{"subagent_type":["x"]}', AgentInput) == AgentInput()
