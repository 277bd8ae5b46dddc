"""Rows of requests that repeat earlier ones are those of requests read one by one."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.hashing import salted_u64
from kv_pipeline.core.normalise import SegmentKind
from kv_pipeline.schemas.requests import CLAUDE_CODE_PROXY, RAW_REQUESTS
from kv_pipeline.sources.anthropic_messages import repetition
from kv_pipeline.sources.anthropic_messages.answer import Answer
from kv_pipeline.sources.anthropic_messages.rows import Facts, RequestRows
from kv_pipeline.sources.interning import Row
from kv_pipeline_tests import strategies as some
from kv_pipeline_tests.sources.factories import SALT

COLUMNS = list(RAW_REQUESTS.columns)
FACTS = Facts(1, "r1", datetime(2025, 1, 1, tzinfo=UTC), "/v1/messages", None, None, 100)


def make_rows() -> RequestRows:
    return RequestRows("db", CLAUDE_CODE_PROXY, SALT, False, lambda _: None)


def row_of(maker: RequestRows, raw: bytes) -> Row:
    body = maker.parse(raw, 1)
    return maker.row(FACTS, body.rest, maker.intern(raw, body, 1), Answer())


@settings(max_examples=200, deadline=None)
@given(bodies=some.bodies(), model=st.sampled_from(["a", "b"]))
def test_rows_of_repeated_messages_are_those_of_messages_read_anew(bodies, model):
    raws = [json.dumps(body | {"model": model}, separators=(",", ":")).encode() for body in bodies]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repetition, "_MIN_BYTES", 0)
        repeating = make_rows()
        found = [row_of(repeating, raw) for raw in raws]
        patch.setattr(repetition, "_MIN_BYTES", max(map(len, raws)) + 1)
        forgetful = make_rows()
        assert found == [row_of(forgetful, raw) for raw in raws]


def test_breakpoints_that_move_on_are_those_of_each_turn(monkeypatch):
    monkeypatch.setattr(repetition, "_MIN_BYTES", 0)
    maker, messages = make_rows(), []
    for turn in range(5):
        marked = {"role": "user", "content": [{"type": "text", "text": f"{turn}", "cache_control": {"ttl": "1h"}}]}
        raw = json.dumps({"model": "m", "messages": [*messages, marked]}, separators=(",", ":")).encode()
        row = dict(zip(COLUMNS, row_of(maker, raw), strict=True))
        assert row["breakpoints"] == [{"section": "messages", "item_index": turn, "block_index": 0, "ttl": "1h"}]
        messages.append({"role": "user", "content": [{"type": "text", "text": f"{turn}"}]})


def test_content_is_model_and_segments_in_order():
    maker = make_rows()
    message, tools = {"role": "user", "content": "hello"}, [{"name": "Read"}]
    body = {"model": "m", "tools": tools, "system": "s", "messages": [message, message]}
    row = dict(zip(COLUMNS, row_of(maker, json.dumps(body).encode()), strict=True))
    numbers = [
        maker.segment(SegmentKind.TOOLS, json.dumps(tools).encode()),
        maker.segment(SegmentKind.SYSTEM, b'"s"'),
        maker.segment(SegmentKind.MESSAGE, json.dumps(message).encode()),
    ]
    parts = maker.parts(numbers[0], numbers[1], numbers[2:] * 2, [])
    assert [row["tools_segment"], row["system_segment"], *row["message_segments"]] == [*numbers, numbers[2]]
    assert row["content_id"] == salted_u64(SALT, b"m" + parts.ids)
    assert len(parts.ids) == 4 * 16
