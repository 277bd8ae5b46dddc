from __future__ import annotations

import json

import pytest

from kv_pipeline.sources.transcript_requests.messages import (
    Sent,
    blocks_of,
    canonical,
    parse,
    sent_message,
    with_marker,
)

# Made with Node 18: JSON.stringify of the message, and the SHA-256 of the same with sorted keys.
GOLDEN = [
    (
        '{"role":"user","content":[{"type":"text","text":"\u00fc\u2602\\n\u2028\u007f\\u0001/\\"\\\\"}]}',
        "5798c30e41c18e76d593959b5d8f77de863fb623042e344ee6b95102fb5f4f78",
    ),
    (
        '{"role":"assistant","content":[{"type":"tool_use","id":"u","name":"x","input":{"b":0.00001,"a":[1e-7,1.5,'
        '1e+21,123456789012345680000,-0.5],"Z":null,"\u00e4":true,"":false}}]}',
        "593a755ab3d42e9d462ecbcca5b8d2f46bf067f88e25871b16ed95a0313ade14",
    ),
    (
        '{"role":"user","content":[{"type":"text","text":"half a pair \\ud83d and \\ude00, a whole one \U0001f600"}]}',
        "8b6d6f258db6ae9f607b48eb5f7422d9a44676718e826bfedbf5ef006ab533b7",
    ),
]


@pytest.mark.parametrize(("sent", "digest"), GOLDEN, ids=["text", "numbers", "surrogates"])
def test_digests_are_those_of_javascript(sent, digest):
    message = sent_message(sent.encode())
    assert message is not None
    assert message.digest() == digest


def test_a_string_has_the_digest_of_the_list_that_it_stands_for():
    string, blocks = (sent_message(raw) for raw in (b'{"role":"user","content":"hi"}',
                      b'{"content":[{"text":"hi","type":"text"}],"role":"user"}'))  # fmt: skip
    assert string is not None
    assert blocks is not None
    assert string.digest() == blocks.digest()


@pytest.mark.parametrize(
    ("role", "blocks", "is_marked", "content"),
    [
        pytest.param("user", [b'{"type":"text","text":"a"}'], False, "a", id="one text"),
        pytest.param("user", [b'{"type":"text","text":"a"}'], True, [{"type": "text", "text": "a"}], id="marked"),
        pytest.param("assistant", [b'{"type":"text","text":"a"}'], False, [{"type": "text", "text": "a"}], id="answer"),
        pytest.param("user", [b'{"type":"image"}'], False, [{"type": "image"}], id="no text"),
        pytest.param("user", [b'{"type":"text","text":1}'], False, [{"type": "text", "text": 1}], id="odd text"),
        pytest.param("user", [b"7"], False, [7], id="no object"),
        pytest.param("user", [], False, [], id="empty"),
    ],
)
def test_form_in_which_clients_send(role, blocks, is_marked, content):
    sent = Sent(role, blocks, {"x y": b'"z"'}).raw(is_marked=is_marked)
    assert json.loads(sent) == {"role": role, "content": content, "x y": "z"}


@pytest.mark.parametrize(
    ("content", "blocks"),
    [
        (b'"a"', [b'{"type":"text","text":"a"}']),
        (b'[{"type":"x"},3]', [b'{"type":"x"}', b"3"]),
        (b"null", []),
        (b"5", []),
        (b"{}", []),
        (b"[NaN]", [b"NaN"]),
    ],
)
def test_blocks(content, blocks):
    assert blocks_of(content) == blocks


@pytest.mark.parametrize("raw", [b"null", b"[]", b'"x"', b'{"content":"x"}', b'{"role":5,"content":"x"}'])
def test_what_is_no_message(raw):
    assert sent_message(raw) is None


def test_a_marker_is_put_where_its_path_leads():
    message = canonical(parse(b'{"role":"user","content":[{"b":1e-7,"a":1}]}'))
    marked = with_marker(message, ["content", 0], {"type": "ephemeral"})
    assert marked == b'{"content":[{"a":1,"b":1e-7,"cache_control":{"type":"ephemeral"}}],"role":"user"}'


@pytest.mark.parametrize("path", [["content", 1], ["nothing"], ["role"], ["content", "x"], []], ids=str)
def test_a_path_that_leads_nowhere(path):
    if not path:
        assert b"cache_control" in with_marker(b'{"role":"user"}', path, 1)
        return
    with pytest.raises((LookupError, TypeError)):
        with_marker(b'{"content":[{}],"role":"user"}', path, {})
