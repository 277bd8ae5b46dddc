from __future__ import annotations

from datetime import date
from itertools import pairwise

import pytest

from kv_pipeline.core.model_facts import MODEL_FACTS, facts_of
from kv_pipeline.core.models import canonical_model

MINIMUM = {
    512: ["fable-5", "fable-5-1", "mythos-5", "mythos-5-1", "opus-5", "opus-5-5", "sonnet-5-5", "haiku-5-5"],
    1024: ["opus-4-8", "opus-4-1", "opus-4", "sonnet-5", "sonnet-4-6", "sonnet-4-5", "sonnet-4"],
    2048: ["opus-4-7", "haiku-3-5"],
    4096: ["opus-4-6", "opus-4-5", "haiku-4-5"],
}
STRIPPING = ["opus-4-1", "opus-4", "sonnet-4-5", "sonnet-4", "haiku-4-5", "haiku-3-5"]


def test_minimum_of_every_model_as_documented():
    documented = {f"claude-{name}": tokens for tokens, names in MINIMUM.items() for name in names}
    assert {row.model: row.minimum_cacheable_tokens for row in MODEL_FACTS} == documented


def test_models_that_strip_thinking_as_documented():
    assert {row.model for row in MODEL_FACTS if row.strips_thinking} == {f"claude-{name}" for name in STRIPPING}


def test_names_are_canonical_and_periods_in_order():
    assert [row.model for row in MODEL_FACTS if row.model != canonical_model(row.model)] == []
    for model in {row.model for row in MODEL_FACTS}:
        starts = [row.valid_from for row in MODEL_FACTS if row.model == model]
        assert starts[0] is None
        assert all(later is not None and (earlier or date.min) < later for earlier, later in pairwise(starts))


@pytest.mark.parametrize(
    ("on", "tokens"), [(date(2026, 3, 12), 200_000), (date(2026, 3, 13), 1_000_000), (None, 1_000_000)]
)
def test_window_of_its_time(on, tokens):
    facts = facts_of("claude-opus-4-6", on)
    assert facts is not None
    assert facts.context_window_tokens == tokens


def test_tag_raises_the_window():
    tagged, plain = facts_of("claude-sonnet-4-5-20250929[1m]"), facts_of("claude-sonnet-4-5-20250929")
    assert tagged is not None
    assert plain is not None
    assert (tagged.context_window_tokens, plain.context_window_tokens) == (1_000_000, 200_000)


def test_minimum_can_be_overridden():
    facts = facts_of("claude-opus-4-5", minimum_cacheable_tokens=0)
    assert facts is not None
    assert facts.minimum_cacheable_tokens == 0


@pytest.mark.parametrize("model", ["claude-opus-4-9", "claude-opus", "gpt-5", "<synthetic>", ""])
def test_unknown_models_are_not_guessed(model):
    assert facts_of(model, minimum_cacheable_tokens=1024) is None
