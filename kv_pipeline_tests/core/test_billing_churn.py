"""Zeroing the billing header before parsing gives what zeroing it after parsing gives."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.normalise import SegmentKind, normalise, split_billing_churn

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
