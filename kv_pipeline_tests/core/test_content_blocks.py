from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.content_blocks import (
    BILLING_HEADER,
    DEFERRED_TOOL,
    SYSTEM,
    TOOL,
    WITHOUT_REMINDERS,
    BlockPayload,
    content_blocks,
    facet,
)
from kv_pipeline.core.normalise import SegmentKind, normalise
from kv_pipeline_tests.core.bodies import SALT, text, tool, user, words
from kv_pipeline_tests.strategies import json_values

MESSAGE, TOOLS, SYSTEM_KIND = SegmentKind.MESSAGE, SegmentKind.TOOLS, SegmentKind.SYSTEM


def described(kind, value, salt=SALT):
    segment = normalise(kind, json.dumps(value).encode(), salt)
    payloads = [BlockPayload(payload.digest, payload.estimated_tokens) for payload in segment.payloads]
    return content_blocks(kind, segment.text, payloads, salt, words)


def only(kind, value, **options):
    (block,) = described(kind, value, **options)
    return block


def image(data):
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def test_a_block_a_tool_a_system_block_or_a_block_of_a_message():
    later = {**tool("B"), "defer_loading": True}
    assert [b.kind for b in described(TOOLS, [tool("A"), later])] == [TOOL, DEFERRED_TOOL]
    header = text("x-anthropic-billing-header: cc_version=1;")
    assert [b.kind for b in described(SYSTEM_KIND, [header, text("Help")])] == [BILLING_HEADER, SYSTEM]
    assert [b.kind for b in described(MESSAGE, user(text("a"), {"type": "tool_result"}, {"type": 7}, 3))] == [
        "text", "tool_result", "other", "other",
    ]  # fmt: skip


def test_plain_text_is_the_same_in_a_string_and_in_a_list():
    string, listed = only(MESSAGE, user("Hello")), only(MESSAGE, user(text("Hello")))
    assert string.content_id == listed.content_id
    assert (string.is_string, listed.is_string) == (True, False)
    assert only(SYSTEM_KIND, "You help").content_id == only(SYSTEM_KIND, [text("You help")]).content_id


def test_text_with_more_than_text_is_told_apart():
    cited = text("Hello", citations=[])
    assert only(MESSAGE, user(cited)).content_id != only(MESSAGE, user(text("Hello"))).content_id


def test_markers_are_no_content():
    marked = text("Hello", cache_control={"type": "ephemeral"})
    assert only(MESSAGE, user(marked)) == only(MESSAGE, user(text("Hello")))


def test_ids_are_salted():
    assert only(MESSAGE, user("Hello")).content_id != only(MESSAGE, user("Hello"), salt=b"other").content_id


def test_payloads_count_and_tell_blocks_apart():
    first, second, third = described(MESSAGE, user(image("AAAA"), text("a b"), image("BBBB")))
    assert first.content_id != third.content_id
    assert first.has_image and third.has_image and not second.has_image
    assert first.tokens > 1000 > second.tokens


def test_payloads_inside_of_results():
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image("AAAA"), image("BBBB")]}
    held, after = described(MESSAGE, user(result, image("CCCC")))
    alone = only(MESSAGE, user(image("CCCC")))
    assert held.has_image
    assert after.content_id == alone.content_id


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 1, "b": 2}, {"b": 2, "a": 1}), ({"x": {"a": [1], "b": 2}}, {"x": {"b": 2, "a": [1]}})],
)
def test_key_order_is_content_but_not_canonical(one, other):
    uses = [only(MESSAGE, user({"type": "tool_use", "id": "t", "name": "n", "input": keys})) for keys in (one, other)]
    assert uses[0].content_id != uses[1].content_id
    assert uses[0].canonical_id == uses[1].canonical_id


REMINDER = "<system-reminder>\nBe kind.\n</system-reminder>"


@pytest.mark.parametrize(
    ("words", "is_reminder"),
    [(REMINDER, True), (f"\n{REMINDER}\n{REMINDER}", True), (f"Hello {REMINDER}", False), ("<system-reminder>", False)],
)
def test_reminders(words, is_reminder):
    assert only(MESSAGE, user(text(words))).is_reminder == is_reminder


def result(words):
    return {"type": "tool_result", "tool_use_id": "t", "content": words}


@pytest.mark.parametrize("wrap", [result, text], ids=["result", "text"])
def test_a_block_remembers_what_it_is_without_reminders(wrap):
    plain, folded = only(MESSAGE, user(wrap("Hello"))), only(MESSAGE, user(wrap(f"Hello\n\n{REMINDER}")))
    assert facet(plain, WITHOUT_REMINDERS) is None
    assert facet(folded, WITHOUT_REMINDERS) == plain.content_id


@pytest.mark.parametrize(
    ("words", "is_cleared"),
    [
        ("[Old tool result content cleared]", True),
        ("[Tool result cleared to save context]", True),
        ("The tool result was cleared", False),
        ("[Old tool result content cleared]" + " and much more" * 40, False),
    ],
)
def test_cleared_results(words, is_cleared):
    assert only(MESSAGE, user(result(words))).is_cleared == is_cleared
    assert only(MESSAGE, user(result([text(words)]))).is_cleared == is_cleared
    assert not only(MESSAGE, user(text(words))).is_cleared


@given(st.lists(json_values, max_size=4))
def test_any_json_has_as_many_blocks_as_it_says(values):
    for kind, value in ((TOOLS, values), (SYSTEM_KIND, values), (MESSAGE, {"role": "user", "content": values})):
        blocks = described(kind, value)
        assert len(blocks) == len(values)
        assert blocks == described(kind, value)


@given(json_values)
def test_any_json_can_be_a_segment(value):
    for kind in SegmentKind:
        segment = normalise(kind, json.dumps(value).encode(), SALT)
        assert len(described(kind, value)) == segment.n_content_blocks
