from __future__ import annotations

import json

import pytest

from kv_pipeline.demo.wire import Block, Message, estimated_tokens, go, text_block


def test_go_escapes_what_go_escapes():
    assert go({"b": "<a> & \u2028 é", "a": 1}) == '{"b":"\\u003ca\\u003e \\u0026 \\u2028 é","a":1}'


def test_message_content_has_sorted_keys():
    block = Block.of({"type": "tool_use", "name": "Read", "id": "1", "input": {"z": 1, "a": 2}})
    assert block.wire == '{"id":"1","input":{"a":2,"z":1},"name":"Read","type":"tool_use"}'


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_a_marked_block_differs_by_its_breakpoint_only(ttl):
    block = Block.of(text_block("hi"))
    marked = json.loads(block.marked(ttl))
    control = marked.pop("cache_control")
    assert marked == json.loads(block.wire)
    assert control == ({"ttl": "1h", "type": "ephemeral"} if ttl == "1h" else {"type": "ephemeral"})


@pytest.mark.parametrize(("role", "texts", "is_string"), [
    ("user", ["a"], True),
    ("system", ["a"], True),
    ("assistant", ["a"], False),
    ("user", ["a", "b"], False),
    ("system", [], False),
])  # fmt: skip
def test_lone_text_without_breakpoint_is_a_string(role, texts, is_string):
    message = Message.of(role, [text_block(text) for text in texts])
    assert isinstance(json.loads(message.plain)["content"], str) is is_string


def test_marked_message_is_a_list():
    content = json.loads(Message.of("user", [text_block("a")]).marked("5m"))["content"]
    assert content == [{"cache_control": {"type": "ephemeral"}, "text": "a", "type": "text"}]


def test_images_count_a_fixed_number_of_tokens():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 9_000}}
    assert Block.of(image).tokens < 100 < estimated_tokens("A" * 9_000)
