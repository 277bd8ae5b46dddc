from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.models import asks_for_long_context, canonical_model

SPELLINGS = {
    "claude-sonnet-4": [
        "claude-sonnet-4",
        "claude-sonnet-4-0",
        "claude-sonnet-4-20250514",
        "claude-sonnet-4@20250514",
        "claude-sonnet-4-20250514[1m]",
        "us.anthropic.claude-sonnet-4-20250514-v1:0",
        "anthropic/claude-sonnet-4",
        "claude-4-sonnet",
        "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude-sonnet-4-20250514-v1:0",
    ],
    "claude-opus-4-5": [
        "claude-opus-4-5-20251101",
        "global.anthropic.claude-opus-4-5-20251101-v1:0",
        "anthropic.claude-opus-4-5",
        "openrouter/anthropic/claude-opus-4.5",
        "vertex_ai/claude-opus-4-5@20251101",
        " Claude-Opus-4-5-latest ",
    ],
    "claude-opus-4-6": ["anthropic.claude-opus-4-6-v1", "claude-opus-4-6[1M]", "claude-opus-4-6@default"],
    "claude-haiku-3-5": ["claude-3-5-haiku-20241022", "claude-3.5-haiku", "claude-3-5-haiku-latest"],
    "claude-haiku-3": ["claude-3-haiku-20240307"],
    "claude-fable-5": ["claude-fable-5"],
    "gpt-4o-2024-08-06": ["openai/gpt-4o-2024-08-06"],
}


@pytest.mark.parametrize(
    ("spelling", "expected"), [(spelling, name) for name, names in SPELLINGS.items() for spelling in names]
)
def test_spellings_of_a_model(spelling, expected):
    assert canonical_model(spelling) == expected
    assert canonical_model(expected) == expected


@pytest.mark.parametrize(
    "model", ["claude-opus-4-5-fast", "claude-opus-45", "claude-opus-4-5-202511", "claude-opus-4-5:thinking", ""]
)
def test_other_names_are_left_alone(model):
    assert canonical_model(model) == model


def test_versions_are_never_merged():
    names = ["claude-opus-4", "claude-opus-4-1", "claude-opus-4-5", "claude-opus-5", "claude-opus-5-5"]
    assert len({canonical_model(name) for name in names}) == len(names)


PREFIXES = ["", "anthropic/", "us.anthropic.", "apac.anthropic.", "bedrock/eu.anthropic.", "vertex_ai/"]
SNAPSHOTS = ["", "-20250514", "@20251101", "-latest"]


@given(
    st.sampled_from(["opus", "sonnet", "haiku", "fable"]),
    st.integers(1, 9),
    st.integers(1, 9) | st.none(),
    st.sampled_from(PREFIXES),
    st.sampled_from(SNAPSHOTS),
    st.sampled_from(["", "-v1", "-v1:0", "-v2:0"]),
    st.sampled_from(["", "[1m]"]),
)
def test_whatever_surrounds_a_name_goes(family, major, minor, prefix, snapshot, bedrock, tag):
    name = f"claude-{family}-{major}" + (f"-{minor}" if minor else "")
    assert canonical_model(f"{prefix}{name}{snapshot}{bedrock}{tag}") == name


def test_long_context_tag():
    assert asks_for_long_context("claude-sonnet-4-5[1m]")
    assert not asks_for_long_context("claude-sonnet-4-5")
