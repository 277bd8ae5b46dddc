from __future__ import annotations

import json

import pytest

from kv_pipeline.errors import InputError
from kv_pipeline.sources.anthropic_messages.body import Body, Options, not_json, parse_body

DEEP = b"[" * 100_000 + b"]" * 100_000


def parse(raw: bytes | None) -> Body:
    return parse_body(raw, "ada/requests", 7)


def test_parts_stay_raw_json():
    body = parse(b'{"model":"m","tools":[{"name": "t"}],"system":"s","messages":[{"b":1, "a":2}],"stream":true}')
    assert body == Body(
        "m", b'[{"name": "t"}]', b'"s"', [b'{"b":1, "a":2}'], is_streaming=True, automatic_cache_ttl=None
    )


@pytest.mark.parametrize("key", ["tools", "system"])
def test_null_is_as_good_as_missing(key):
    assert getattr(parse(json.dumps({"messages": [], key: None}).encode()), key) is None


@pytest.mark.parametrize(
    ("control", "ttl"),
    [
        (None, None),
        ({"type": "ephemeral"}, "5m"),
        ({"ttl": "1h"}, "1h"),
        ({"ttl": 3}, "5m"),
        ("ephemeral", None),
        ([1], None),
    ],
)
def test_automatic_caching(control, ttl):
    assert parse(json.dumps({"messages": [], "cache_control": control}).encode()).automatic_cache_ttl == ttl


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(None, "no_body", id="null"),
        pytest.param(b"", "body_not_json", id="empty"),
        pytest.param(b"upstream connect error", "body_not_json", id="error text"),
        pytest.param(b'{"messages":[{"role":"us', "body_not_json", id="cut off"),
        pytest.param(b'{"messages":[]}\x00\x00', "body_not_json", id="zeros after it"),
        pytest.param(b'{"messages":[],"model":%s}' % (b"9" * 5000), "body_not_json", id="endless number"),
        pytest.param(b'"{}"', "body_not_object", id="a JSON string"),
        pytest.param(b"null", "body_not_object", id="JSON null"),
        pytest.param(b"[1]", "body_not_object", id="a JSON list"),
        pytest.param(b"{}", "no_messages", id="no messages"),
        pytest.param(b'{"messages":{}}', "no_messages", id="messages are no list"),
        pytest.param(b'{"model":"\xff","messages":[]}', "body_not_utf8", id="not UTF-8"),
        pytest.param(b'{"messages":' + DEEP + b"}", "body_too_deep", id="nested too deeply"),
    ],
)
def test_what_is_no_body_names_file_row_and_reason(raw, reason):
    with pytest.raises(InputError, match="left out") as caught:
        parse(raw)
    assert (caught.value.reason, caught.value.source, caught.value.row) == (reason, "ada/requests", 7)


@pytest.mark.parametrize(
    "message",
    [b"NaN", b"[Infinity, -Infinity]", b'"\\ud800"', b"null", b"1e999", b'"\xf0\x9f\x99\x82"'],
    ids=["nan", "infinity", "half a pair", "null", "overflow", "emoji"],
)
def test_what_only_the_lenient_parser_takes_is_taken(message):
    body = parse(b'{"model":"m","messages":[' + message + b"]}")
    assert body.model == "m"
    assert repr(json.loads(body.messages[0])) == repr(json.loads(message))


def test_of_a_repeated_key_the_last_counts_in_both_parsers():
    strict, lenient = (
        b'{"messages":[1],"model":"a","messages":[2],"model":"b"%s}' % more for more in (b"", b',"x":NaN')
    )
    assert parse(strict) == parse(lenient)
    assert parse(strict).model == "b"


def test_half_a_surrogate_pair_in_the_model_can_be_stored():
    assert parse(b'{"model":"a\\ud800","messages":[]}').model == "a?"


def test_the_message_quotes_nothing_of_the_body():
    with pytest.raises(InputError) as caught:
        parse(b"my secret prompt")
    assert "secret" not in str(caught.value)
    assert "secret" not in str(not_json(ValueError("my secret"), "d", 1))


OPTIONS = {
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 4},
    "output_config": {"effort": "high", "format": {"type": "json"}},
    "effort": "low",
    "speed": "fast",
    "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
}


def options(**changes) -> Options:
    """The options of a body, the same whichever parser reads them."""
    body = {"messages": [1], **changes}
    strict, lenient = (
        parse(json.dumps(body | {"messages": messages}).encode()).options for messages in ([1], [float("nan")])
    )
    assert strict == lenient
    return strict


def test_a_body_without_options_has_none():
    assert options() == Options() == options(**dict.fromkeys(OPTIONS)) == options(output_config=[1])


def test_options_are_canonical_whatever_the_order_of_keys():
    assert options(**OPTIONS) == options(**{key: reverse(value) for key, value in OPTIONS.items()})
    assert options(tool_choice={"b": 1, "a": "\ud800"}).tool_choice == b'{"a":"\\ud800","b":1}'


def reverse(value):
    return {key: reverse(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("key", "other", "changed"),
    [
        ("tool_choice", {"type": "none"}, "tool_choice"),
        ("thinking", {"type": "disabled"}, "thinking"),
        ("output_config", {"effort": "max"}, "thinking"),
        ("effort", "high", "thinking"),
        ("speed", "standard", "speed"),
        ("context_management", {}, "context_management"),
        ("output_config", {"effort": "high"}, None),
        ("temperature", 1, None),
    ],
)
def test_a_changed_option_changes_its_own_part_alone(key, other, changed):
    before, after = options(**OPTIONS)._asdict(), options(**OPTIONS | {key: other})._asdict()
    assert [name for name in before if before[name] != after[name]] == ([changed] if changed else [])


def test_options_too_deep_for_json_are_told_of():
    with pytest.raises(InputError) as caught:
        parse(b'{"messages":[],"thinking":' + DEEP + b"}")
    assert caught.value.reason == "body_too_deep"


UUID = "3a81ffe1-b974-43f6-af5e-d07056661b38"


@pytest.mark.parametrize(
    ("metadata", "session_id"),
    [
        ({"user_id": f"user_0af3_account_77-x_session_{UUID}"}, UUID),
        ({"user_id": f"user_0af3_account__session_{UUID}"}, UUID),
        ({"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": UUID})}, UUID),
        ({"user_id": {"session_id": UUID}}, UUID),
        ({"user_id": "89c4ec86c1c752bc"}, None),
        ({"user_id": "user_1_session_"}, None),
        ({"user_id": '{"session_id": 3}'}, None),
        ({"user_id": '{"session_id": ""}'}, None),
        ({"user_id": '{"session_id": "x'}, None),
        ({"user_id": "{" + '"a":[' * 9999}, None),
        ({"user_id": 3}, None),
        ("user_1_session_x", None),
        (None, None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_session_of_the_metadata(metadata, session_id):
    strict, lenient = (
        parse(json.dumps({"messages": messages, "metadata": metadata}).encode()) for messages in ([1], [float("nan")])
    )
    assert strict.session_id == lenient.session_id == session_id
