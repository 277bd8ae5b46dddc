from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.payloads import payload_tokens, read_payload
from kv_pipeline_tests import oracle
from kv_pipeline_tests.factories import SALT
from kv_pipeline_tests.strategies import pdf, png

VOCABULARY_SIZE = 100_277


@pytest.mark.parametrize(
    ("media_type", "data", "tokens"),
    [
        ("image/png", png(750, 1), 1),
        ("image/png", png(751, 1), 2),
        ("image/png", png(1, 1), 1),
        ("image/png", png(1000, 1000), 1334),
        ("image/png", png(4000, 100), 82),
        ("image/png", png(9000, 9000), 1600),
        ("image/png", png(0, 10), 1600),
        ("image/webp", base64.b64encode(b"RIFF, cut off").decode(), 1600),
        ("image/png", "no base64: \ud800 é", 1600),
        ("image/png", "", 1600),
        ("application/pdf", pdf(1), 2250),
        ("application/pdf", pdf(3), 6750),
        ("application/pdf", base64.b64encode(b"compressed").decode(), 2250),
        ("None", png(30, 50), 2),
    ],
)
def test_tokens_are_estimated_as_the_api_counts(media_type, data, tokens):
    assert read_payload(SALT, media_type, data).estimated_tokens == tokens


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_image_tokens_are_the_defined_ones(width, height):
    assert read_payload(SALT, "image/png", png(width, height)).estimated_tokens == oracle.png_tokens(png(width, height))


@given(st.binary(max_size=60), st.sampled_from(["image/png", "image/jpeg", "application/pdf"]))
def test_any_bytes_can_be_described(content, media_type):
    data = base64.b64encode(content).decode()
    payload = read_payload(SALT, media_type, data)
    tokens = payload_tokens(payload)
    assert payload.n_bytes == len(data)
    assert len(tokens) == payload.estimated_tokens >= 1
    assert tokens.min() > VOCABULARY_SIZE


def test_stand_ins_are_the_defined_ones():
    payload = read_payload(SALT, "image/png", png(300, 300))
    assert payload_tokens(payload).tolist() == oracle.stand_ins(SALT, "image/png", png(300, 300))


def test_digest_depends_on_data_and_salt_only():
    digest = read_payload(SALT, "image/png", png(9, 9)).digest
    assert digest == read_payload(SALT, "image/jpeg", png(9, 9)).digest
    assert digest != read_payload(b"other", "image/png", png(9, 9)).digest
    assert digest != read_payload(SALT, "image/png", png(9, 8)).digest
