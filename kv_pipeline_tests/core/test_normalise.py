from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.normalise import Marker, SegmentKind, block_types, normalise
from kv_pipeline.core.payloads import read_payload
from kv_pipeline_tests import oracle
from kv_pipeline_tests import strategies as some
from kv_pipeline_tests.factories import SALT

HEADER = "x-anthropic-billing-header: cc_version=2.1.9; cch=a1b2c; cc_prev_req=req_1; cc_prompt_id=p-1;"
ZEROED = "x-anthropic-billing-header: cc_version=2.1.9; cch=00000; cc_prev_req=00000; cc_prompt_id=000;"


def normalised(kind, value, **options):
    return normalise(SegmentKind(kind), json.dumps(value).encode(), SALT, **options)


def keys_of(value):
    if isinstance(value, dict):
        yield from value
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in below:
        yield from keys_of(item)


@settings(max_examples=200)
@given(st.one_of(some.messages, some.json_values), st.sampled_from(list(SegmentKind)), st.booleans())
def test_text_is_the_defined_one(value, kind, ascii_only):
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    text = normalise(kind, raw, SALT, keep_billing_header=True).text
    assert text == oracle.compact(oracle.cleaned(value, []))
    assert text.isascii()
    assert not {"cache_control", "signature"} & set(keys_of(json.loads(text)))


def found_by_walking(kind, value, path=()):
    """Breakpoints, payloads as (media type, data) and billing headers, with paths from the top of a segment."""
    if isinstance(value, dict):
        position = path[1:] if kind == "message" and path[:1] == ("content",) else path
        is_block = len(position) == 1 or (kind == "message" and len(position) == 3 and position[1] == "content")
        if is_block and isinstance(position[0], int) and isinstance(value.get("cache_control"), dict):
            yield "marker", Marker(position[0], "1h" if value["cache_control"].get("ttl") == "1h" else "5m")
        if value.get("type") == "base64" and isinstance(value.get("data"), str):
            yield "payload", (str(value.get("media_type")), value["data"])
            value = value | {"data": ""}
    is_text = path == () or (len(path) == 2 and path[1] == "text")
    if kind == "system" and is_text and isinstance(value, str) and value.startswith(oracle.BILLING_HEADER):
        yield "header", value
    items = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for key, item in items:
        if key not in ("cache_control", "signature"):
            yield from found_by_walking(kind, item, (*path, key))


CONTROLS = st.sampled_from([{"type": "ephemeral"}, {"ttl": "1h"}, {"cache_control": {"ttl": "1h"}}, {}, None, "odd"])
HOLDERS = st.recursive(
    st.one_of(some.sources, some.headers, st.just(HEADER + HEADER), st.sampled_from([None, 7, "signature", "text"])),
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(
            st.sampled_from(["content", "text", "source", "cache_control", "signature"]), below, max_size=3
        ),
        st.builds(lambda control, content: {"cache_control": control, "content": content}, CONTROLS, below),
        st.builds(lambda content, control: {"content": content, "cache_control": control}, below, CONTROLS),
    ),
    max_leaves=12,
)
"""Segments full of what is removed from segments, at any depth and in any place."""


def escaped(raw: str) -> str:
    """The same JSON with escapes in the words that are looked for."""
    return (
        raw.replace("cache_c", "cache\\u005fc").replace("signat", "sign\\u0061t").replace("-header:", "-header\\u003a")
    )


@settings(max_examples=500)
@given(st.one_of(HOLDERS, some.messages, some.systems), st.sampled_from(list(SegmentKind)), st.booleans())
def test_what_is_taken_out_is_found_in_place_and_order(value, kind, has_escapes):
    raw = json.dumps(value)
    segment = normalise(kind, (escaped(raw) if has_escapes else raw).encode(), SALT)
    found = list(found_by_walking(kind, value))
    assert segment.markers == tuple(what for name, what in found if name == "marker")
    assert segment.payloads == tuple(read_payload(SALT, *what) for name, what in found if name == "payload")
    headers = [what for name, what in found if name == "header"]
    assert segment.billing_churn == (" ".join(map(churn_of, headers)) if headers else None)
    expected = oracle.cleaned(without_churn(value) if kind is SegmentKind.SYSTEM else value, [])
    assert segment.text == oracle.compact(expected)


def without_churn(system):
    """As the oracle's, for objects too: their values are taken for blocks."""
    if isinstance(system, dict):
        return {key: oracle.without_churn([value])[0] for key, value in system.items()}
    return oracle.without_churn(system)


def churn_of(header):
    return ";".join(word for word in re.split(r"[;\s]+", header) if word.partition("=")[0] in oracle.CHURNING)


@given(some.systems)
def test_system_text_is_the_defined_one(system):
    expected = oracle.compact(oracle.cleaned(oracle.without_churn(system), []))
    assert normalised("system", system).text == expected


@pytest.mark.parametrize("system", [HEADER, [{"type": "text", "text": HEADER}]], ids=["string", "block"])
def test_changing_values_of_the_billing_header_become_zeros(system):
    segment = normalised("system", system)
    assert segment.text == json.dumps(system, separators=(",", ":")).replace(HEADER, ZEROED)
    assert segment.billing_churn == "cch=a1b2c;cc_prev_req=req_1;cc_prompt_id=p-1"


def test_the_billing_header_can_be_kept():
    segment = normalised("system", HEADER, keep_billing_header=True)
    assert segment.text == json.dumps(HEADER)
    assert segment.billing_churn == "cch=a1b2c;cc_prev_req=req_1;cc_prompt_id=p-1"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        pytest.param("message", {"role": "user", "content": HEADER}, id="in a message"),
        pytest.param("tools", [{"text": HEADER}], id="in tools"),
        pytest.param("system", [{"type": "text", "text": "See " + HEADER}], id="not at the start"),
        pytest.param("system", [{"type": "text", "note": {"text": HEADER}}], id="deeper down"),
    ],
)
def test_only_the_header_itself_is_changed(kind, value):
    segment = normalised(kind, value)
    assert segment.text == json.dumps(value, separators=(",", ":"))
    assert segment.billing_churn is None


MARKED = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}


@pytest.mark.parametrize(
    ("kind", "value", "markers"),
    [
        pytest.param("tools", [{"name": "a"}, {"name": "b", "cache_control": MARKED}], [(1, "5m")], id="tool"),
        pytest.param("system", [{"cache_control": HOUR}, {"cache_control": MARKED}], [(0, "1h"), (1, "5m")], id="two"),
        pytest.param("message", {"content": [{}, {"cache_control": HOUR}]}, [(1, "1h")], id="content block"),
        pytest.param(
            "message", {"content": [{}, {}, {"content": [{"cache_control": MARKED}]}]}, [(2, "5m")], id="nested result"
        ),
        pytest.param("message", {"cache_control": MARKED, "content": "a"}, [], id="on the message itself"),
        pytest.param("message", {"content": [{"input": {"cache_control": MARKED}}]}, [], id="in somebody's data"),
        pytest.param("tools", [{"input_schema": {"properties": {"cache_control": MARKED}}}], [], id="in a schema"),
        pytest.param("system", [{"cache_control": None}, {"cache_control": "yes"}], [], id="no marker"),
    ],
)
def test_markers(kind, value, markers):
    assert normalised(kind, value).markers == tuple(Marker(*marker) for marker in markers)


@pytest.mark.parametrize(
    ("content", "types", "n_blocks"),
    [
        ("plain", ("text",), 1),
        ([{"type": "tool_result"}, {"type": "text"}, {"type": "text"}], ("text", "tool_result"), 3),
        ([], (), 0),
        ([7, {"type": 7}, {}], (), 3),
        ([{"type": []}, {"type": {}}, {"type": None}], (), 3),
        ([{"type": "\ud800"}], ("other",), 1),
        (None, (), 1),
        ({"type": "text"}, (), 1),
    ],
)
def test_content_types(content, types, n_blocks):
    segment = normalised("message", {"role": "user", "content": content})
    assert (segment.content_types, segment.n_content_blocks, segment.role) == (types, n_blocks, "user")


@pytest.mark.parametrize("message", [{"role": 7}, {}, [], "text", 3])
def test_odd_messages_have_no_role(message):
    assert normalised("message", message).role is None


def test_a_role_can_be_stored():
    assert normalised("message", {"role": "\ud800"}).role == "other"


def test_other_segments_have_no_content_types():
    segment = normalised("system", [{"type": "text", "text": "a"}])
    assert (segment.content_types, segment.n_content_blocks, segment.role) == ((), 1, None)


def test_payload_leaves_only_its_digest():
    source = {"type": "base64", "media_type": "image/png", "data": some.png(75, 100)}
    segment = normalised("message", {"content": [{"type": "image", "source": source}]})
    (payload,) = segment.payloads
    assert source["data"] not in segment.text
    assert '"data":""' in segment.text
    assert (payload.n_bytes, payload.estimated_tokens) == (len(source["data"]), 10)


def test_what_is_no_json_is_refused():
    with pytest.raises(ValueError, match="Expecting"):
        normalise(SegmentKind.MESSAGE, b"{", SALT)


@pytest.mark.parametrize("innermost", ["1", '{"cache_control":1}', '"signature"'])
def test_nesting_is_read_as_deep_whether_or_not_something_is_taken_out(innermost):
    raw = "[" * 600 + innermost + "]" * 600
    assert normalise(SegmentKind.MESSAGE, raw.encode(), SALT).text == raw.replace('"cache_control":1', "")


def test_block_types_are_sorted_and_distinct():
    assert block_types([{"type": "b"}, {"type": "a"}, {"type": "b"}, None, {"type": None}]) == ("a", "b")


@pytest.mark.parametrize("text", ["", "a text", "x" * 65, "<b>", "=1+1", "\ud83d", "é", "a\n"])
def test_types_that_could_be_any_text_are_other(text):
    assert block_types([{"type": text}, {"type": "tool_use"}]) == ("other", "tool_use")
