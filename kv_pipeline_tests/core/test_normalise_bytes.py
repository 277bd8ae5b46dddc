"""What is done to a segment's bytes before parsing gives what normalising the original gives."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.normalise import SegmentKind, normalise, split_billing_churn, without_markers

SALT = b"s" * 32
VALUES = st.text(st.sampled_from('abc019; =\\"é_-'), max_size=8)
HEADERS = st.builds(
    lambda prefix, a, b: f"{prefix}cc_version=2.1; cch={a}; cc_prev_req={b};",
    st.sampled_from(
        ["x-anthropic-billing-header: ", "x-anthropic-billing-header:", " x-anthropic-billing-header: ", ""]
    ),
    VALUES,
    VALUES,
)
SYSTEMS = st.one_of(
    HEADERS,
    st.lists(st.builds(lambda text: {"type": "text", "text": text}, HEADERS), max_size=3),
    st.lists(st.builds(lambda text: {"text": text, "type": "text"}, HEADERS), max_size=3),
)


@given(system=SYSTEMS)
def test_same_as_normalising_the_original(system: Any) -> None:
    raw = json.dumps(system, separators=(",", ":")).encode()
    zeroed, churn = split_billing_churn(raw)
    expected = normalise(SegmentKind.SYSTEM, raw, SALT)
    assert normalise(SegmentKind.SYSTEM, zeroed, SALT).text == expected.text
    assert churn is None or churn == expected.billing_churn


@pytest.mark.parametrize("value", ["00000", "a1b2c"])
def test_values_become_zeros_of_the_same_length(value: str) -> None:
    raw = b'[{"type":"text","text":"x-anthropic-billing-header: cc_version=2; cch=%s;"}]' % value.encode()
    zeroed, churn = split_billing_churn(raw)
    assert zeroed == raw.replace(value.encode(), b"00000")
    assert churn == f"cch={value}"


CONTROLS = st.sampled_from(
    [{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, {"ttl": "5m"}, {}, None, {"type": {"a": 1}}]
)
TEXTS = st.sampled_from(["a", ',"cache_control":{"type":"ephemeral"}', "cache_control", '"', "\\", ",", ":{}"])
BLOCKS = st.dictionaries(st.sampled_from(["text", "type", "cache_control"]), st.one_of(TEXTS, CONTROLS), max_size=3)
MESSAGES = st.fixed_dictionaries(
    {"content": st.one_of(TEXTS, st.lists(BLOCKS, max_size=3))}, optional={"cache_control": CONTROLS, "role": TEXTS}
)


@given(message=MESSAGES)
def test_message_without_its_markers_has_the_same_text(message: Any) -> None:
    raw = json.dumps(message, separators=(",", ":")).encode()
    expected = normalise(SegmentKind.MESSAGE, raw, SALT)
    bare = without_markers(raw, len(expected.markers))
    if bare is not None:
        found = normalise(SegmentKind.MESSAGE, bare, SALT)
        assert (found.text, found.markers) == (expected.text, ())


@pytest.mark.parametrize(
    ("block", "bare"),
    [
        ('{"cache_control":{"type":"ephemeral"},"text":"a"}', '{"text":"a"}'),
        ('{"text":"a","cache_control":{"type":"ephemeral","ttl":"1h"}}', '{"text":"a"}'),
        ('{"text":"a"}', None),
    ],
)
def test_markers_go_from_the_bytes(block: str, bare: str | None) -> None:
    found = without_markers(f'{{"content":[{block}]}}'.encode(), 1)
    assert found == (None if bare is None else f'{{"content":[{bare}]}}'.encode())
