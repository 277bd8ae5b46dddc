"""Parsing only what is new in a body gives what parsing it whole gives."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.hashing import SEGMENT_ID_BYTES
from kv_pipeline.errors import InputError
from kv_pipeline.sources.anthropic_messages import repetition
from kv_pipeline.sources.anthropic_messages.body import Body, parse_body
from kv_pipeline.sources.anthropic_messages.repetition import RepetitionParser, shared_prefix_bytes
from kv_pipeline.sources.interning import Interned, InternedMessages

MESSAGES = st.one_of(
    st.builds(
        lambda text: {"role": "user", "content": text}, st.sampled_from(["a", 'b","messages":[', "é", "x" * 40, "]}"])
    ),
    st.sampled_from([1, 11, 111, "1", [], [1], {}, None, {"messages": [1]}]),
)
BODIES = st.lists(st.lists(MESSAGES, max_size=6), min_size=1, max_size=6)
TOOLS = ',"tools":[{"name":"messages"}]'
OTHERS = ["", ',"system":"s"', ',"messages":[2]', ',"stream":true', ',"tools":null', ',"tools":[1]', ',"x,\\"y":1']
NOT_TOOLS = [',"x\\"tools":[{"name":"messages"}]', ',"x,\\"tools":[{"name":"messages"}]', ',"x":{"y":1' + TOOLS + "}"]
TAILS = st.sampled_from([*OTHERS, *NOT_TOOLS, *(other + TOOLS for other in OTHERS)])


@pytest.fixture(autouse=True)
def remember_small_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repetition, "_MIN_BYTES", 0)


def body_of(messages: list[Any], tail: str = "") -> bytes:
    return f'{{"model":"m","messages":{json.dumps(messages, separators=(",", ":"))}{tail}}}'.encode()


def interned(number: int) -> Interned:
    return Interned(number, number.to_bytes(SEGMENT_ID_BYTES), (), None)


def parse_all(raws: list[bytes]) -> list[Body]:
    """Parse one after the other; a message's stand-in for being interned is its number among all raw messages."""
    parser, numbers, results = RepetitionParser("db"), dict[bytes, int](), list[Body]()
    for row_id, raw in enumerate(raws):
        parsed = parser.parse(raw, row_id)
        added = [interned(numbers.setdefault(message, len(numbers))) for message in parsed.rest.messages]
        messages = parsed.shared.followed_by(added)
        parser.remember(raw, parsed, messages)
        texts = list(numbers)
        assert messages.ids == b"".join(interned(index).segment_id for index in messages.indexes)
        results.append(parsed.rest._replace(messages=[texts[index] for index in messages.indexes]))
    return results


@settings(max_examples=300, deadline=None)
@given(bodies=BODIES, tails=st.lists(TAILS, min_size=6, max_size=6))
def test_same_as_parsing_whole(bodies: list[list[Any]], tails: list[str]) -> None:
    raws = [body_of(messages, tail) for messages, tail in zip(bodies, tails, strict=False)]
    assert parse_all(raws) == [parse_body(raw, "db", 0) for raw in raws]


@settings(max_examples=200, deadline=None)
@given(messages=st.lists(MESSAGES, max_size=12), tail=TAILS)
def test_growing_conversation_is_the_same(messages: list[Any], tail: str) -> None:
    raws = [body_of(messages[:n], tail) for n in range(len(messages) + 1)]
    assert parse_all(raws) == [parse_body(raw, "db", 0) for raw in raws]


def test_repeated_messages_are_not_parsed_again() -> None:
    parser = RepetitionParser("db")
    first = body_of([{"role": "user", "content": "hello"}])
    parsed = parser.parse(first, 1)
    parser.remember(first, parsed, InternedMessages().followed_by([interned(0)]))
    again = parser.parse(body_of([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]), 2)
    assert again.shared.indexes == [0]
    assert again.rest.messages == [b'{"role":"assistant","content":"hi"}']


def test_repeated_tools_are_not_parsed_again() -> None:
    first, second = parse_all([body_of([1], TOOLS), body_of([1, 2], ',"system":"s"' + TOOLS)])
    assert second == Body("m", b'[{"name":"messages"}]', b'"s"', [b"1", b"2"], False, None)
    assert second.tools is first.tools


def test_number_that_goes_on_is_not_shared() -> None:
    assert [body.messages for body in parse_all([body_of([1]), body_of([12])])] == [[b"1"], [b"12"]]


def test_trailing_comma_is_an_error_as_in_the_whole_body() -> None:
    parser = RepetitionParser("db")
    raw = body_of([{"a": 1}])
    parser.remember(raw, parser.parse(raw, 1), InternedMessages().followed_by([interned(0)]))
    with pytest.raises(InputError, match="body_not_json"):
        parser.parse(raw.replace(b"}]", b"},]"), 2)


@given(left=st.binary(max_size=40), right=st.binary(max_size=40), prefix=st.binary(max_size=40))
def test_shared_prefix_bytes(left: bytes, right: bytes, prefix: bytes) -> None:
    a, b = prefix + left, prefix + right
    expected = next((n for n in range(min(len(a), len(b))) if a[n] != b[n]), min(len(a), len(b)))
    assert shared_prefix_bytes(a, b) == expected


def test_a_long_conversation_leaves_room_for_others() -> None:
    parser = RepetitionParser("db")

    def shared(contents: list[str]) -> int:
        raw = body_of([{"role": "user", "content": content} for content in contents])
        parsed = parser.parse(raw, 1)
        parser.remember(raw, parsed, parsed.shared.followed_by([interned(0)] * len(parsed.rest.messages)))
        return len(parsed.shared.indexes)

    assert shared(["other"]) == 0
    turns = [[str(n) for n in range(turn)] + ["changes"] for turn in range(2 * repetition.RECENT_BODIES)]
    assert [shared(turn) for turn in turns] == [0, *range(len(turns) - 1)]
    assert shared(["other", "more"]) == 1
