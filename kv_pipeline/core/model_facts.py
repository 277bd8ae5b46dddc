"""What rules of caching and context depend on, per model, as data with sources and dates.

Sources, as of `CHECKED_ON`:
    minimum: platform.claude.com, "Prompt caching", section "Cache limitations".
    window: platform.claude.com, "Context windows" and release notes of 2026-03-13 (1M generally available for Opus 4.6
        and Sonnet 4.6); before that, and on older models, a beta that clients ask for by `[1m]` or a header.
    thinking: platform.claude.com, "Prompt caching", section on thinking blocks, and "Extended thinking": earlier
        thinking is kept from Opus 4.5, Sonnet 4.6 and the first Haiku after 4.5 on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Final

from kv_pipeline.core.models import asks_for_long_context, canonical_model

CHECKED_ON: Final = date(2026, 11, 21)
LONG_CONTEXT_TOKENS: Final = 1_000_000
"""Context window that `[1m]` asks for."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model in one period.

    Attributes:
        model: As `canonical_model` names it.
        minimum_cacheable_tokens: Shorter prefixes are silently not cached.
        context_window_tokens: Largest prompt and answer together.
        strips_thinking: Whether thinking of earlier turns is dropped, unseen in recorded bodies, once a user message
            that is no tool result follows.
        valid_from: First day (UTC) of these facts; None if they always held.
    """

    model: str
    minimum_cacheable_tokens: int
    context_window_tokens: int
    strips_thinking: bool
    valid_from: date | None = None


_GENERAL_LONG_CONTEXT: Final = date(2026, 3, 13)

MODEL_FACTS: Final = (
    ModelFacts("claude-fable-5-1", 512, 1_000_000, strips_thinking=False),
    ModelFacts("claude-fable-5", 512, 1_000_000, strips_thinking=False),
    ModelFacts("claude-mythos-5-1", 512, 1_000_000, strips_thinking=False),
    ModelFacts("claude-mythos-5", 512, 1_000_000, strips_thinking=False),
    ModelFacts("claude-opus-5-5", 512, 1_000_000, strips_thinking=False),
    ModelFacts("claude-opus-5", 512, 1_000_000, strips_thinking=False),
    ModelFacts("claude-opus-4-8", 1024, 1_000_000, strips_thinking=False),
    ModelFacts("claude-opus-4-7", 2048, 1_000_000, strips_thinking=False),
    ModelFacts("claude-opus-4-6", 4096, 200_000, strips_thinking=False),
    ModelFacts("claude-opus-4-6", 4096, 1_000_000, strips_thinking=False, valid_from=_GENERAL_LONG_CONTEXT),
    ModelFacts("claude-opus-4-5", 4096, 200_000, strips_thinking=False),
    ModelFacts("claude-opus-4-1", 1024, 200_000, strips_thinking=True),
    ModelFacts("claude-opus-4", 1024, 200_000, strips_thinking=True),
    ModelFacts("claude-sonnet-5-5", 512, 1_000_000, strips_thinking=False),
    ModelFacts("claude-sonnet-5", 1024, 1_000_000, strips_thinking=False),
    ModelFacts("claude-sonnet-4-6", 1024, 200_000, strips_thinking=False),
    ModelFacts("claude-sonnet-4-6", 1024, 1_000_000, strips_thinking=False, valid_from=_GENERAL_LONG_CONTEXT),
    ModelFacts("claude-sonnet-4-5", 1024, 200_000, strips_thinking=True),
    ModelFacts("claude-sonnet-4", 1024, 200_000, strips_thinking=True),
    ModelFacts("claude-haiku-5-5", 512, 1_000_000, strips_thinking=False),
    ModelFacts("claude-haiku-4-5", 4096, 200_000, strips_thinking=True),
    ModelFacts("claude-haiku-3-5", 2048, 200_000, strips_thinking=True),
)
"""One row per model and period; a model's periods in order of time, the first without a start."""


def facts_of(model: str, on: date | None = None, *, minimum_cacheable_tokens: int | None = None) -> ModelFacts | None:
    """Facts of a model.

    Args:
        model: As a request names it; `[1m]` raises the context window.
        on: Day (UTC) of the request; without it the newest facts.
        minimum_cacheable_tokens: Used instead of the table's if given. It does not make an unknown model known.

    Returns:
        None for a model that the table does not have: it is not guessed from its family.
    """
    name = canonical_model(model)
    periods = [row for row in MODEL_FACTS if row.model == name and _has_begun(row, on)]
    if not periods:
        return None
    facts = periods[-1]
    if asks_for_long_context(model):
        facts = replace(facts, context_window_tokens=max(facts.context_window_tokens, LONG_CONTEXT_TOKENS))
    if minimum_cacheable_tokens is not None:
        facts = replace(facts, minimum_cacheable_tokens=minimum_cacheable_tokens)
    return facts


def _has_begun(facts: ModelFacts, on: date | None) -> bool:
    return facts.valid_from is None or on is None or facts.valid_from <= on
