"""What if: the same requests, had the client sent them otherwise, through the *API* model.

Scenarios are compared with the prediction of what was sent, never with the bill, and all take prefixes' lengths from
the same complete bills, so that both sides share their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final

from kv_pipeline.core.api_model import ApiCache, Bill, Prediction, Use, learn_bill
from kv_pipeline.core.content_blocks import BILLING_HEADER, DEFERRED_TOOL, SYSTEM, TOOL, ContentBlock, facet
from kv_pipeline.core.explain import ratios_of
from kv_pipeline.core.lengths import LengthBook
from kv_pipeline.core.prompts import ROOT, PromptTree, Section, Segment, Sent

WARM_SHARE: Final = 0.75
"""Share of cold tools and system tokens that a shared, warm prefix would have saved."""


class Scenario(StrEnum):
    """How requests could have been sent."""

    AS_SENT = "as_sent"
    LIFETIME_1H = "lifetime_1h"
    STABLE_TOOLS = "stable_tools"
    STABLE_SYSTEM = "stable_system"
    WARM_PREFIX_75 = "warm_prefix_75"


DESCRIPTIONS: Final = {
    Scenario.AS_SENT: "as it was sent",
    Scenario.LIFETIME_1H: "every breakpoint asks for 1 hour",
    Scenario.STABLE_TOOLS: "tools in one order throughout",
    Scenario.STABLE_SYSTEM: "no billing header, date, git status or directory in the system prompt",
    Scenario.WARM_PREFIX_75: "75 % of each cold tools and system prefix was warm",
}


def what_if(
    sent: Sent, uses: Sequence[Use], tree: PromptTree, lengths: LengthBook
) -> Iterator[tuple[Scenario, Iterable[Prediction]]]:
    """Predictions of every scenario for each request, in order of time; to be gone through before the next scenario.

    Args:
        sent: The requests.
        uses: The same, placed in `tree`.
        tree: Their prompts as sent.
        lengths: What all bills say of it.
    """
    as_sent = list(_predict(tree, uses, lengths))

    def rearranged(change: Callable[[Segment], Segment]) -> Iterable[Prediction]:
        other, prompts = sent.rearranged(change).place()
        if len(other.parent) == len(tree.parent):  # no prefix became common that was not
            return as_sent
        placed = [use._replace(prompt=prompt) for use, prompt in zip(uses, prompts, strict=True)]
        return _predict(other, placed, _lengths_of(other, placed))

    yield Scenario.AS_SENT, as_sent
    yield Scenario.LIFETIME_1H, _predict(tree, map(_for_an_hour, uses), lengths)
    yield Scenario.STABLE_TOOLS, rearranged(_with_sorted_tools)
    yield Scenario.STABLE_SYSTEM, rearranged(_without_volatile_parts)
    yield Scenario.WARM_PREFIX_75, (_warmed(tree, lengths, *pair) for pair in zip(uses, as_sent, strict=True))


def _predict(tree: PromptTree, uses: Iterable[Use], lengths: LengthBook) -> Iterator[Prediction]:
    return map(ApiCache(tree, lengths, learns=False).use, uses)


def _lengths_of(tree: PromptTree, uses: Sequence[Use]) -> LengthBook:
    """Lengths of prompts that were billed in another arrangement: the same content is as long in any."""
    lengths = LengthBook(tree, ratios_of(tree, uses))
    for use in uses:
        if use.bill is not None:
            learn_bill(lengths, use, use.bill)
    return lengths


def _for_an_hour(use: Use) -> Use:
    marks = tuple(mark._replace(ttl="1h") for mark in use.prompt.marks)
    return use._replace(prompt=use.prompt._replace(marks=marks))


def _with_sorted_tools(segment: Segment) -> Segment:
    """The same tools in an order that depends on their names alone."""
    if not segment.blocks or segment.blocks[0].kind not in {TOOL, DEFERRED_TOOL}:
        return segment
    return segment._replace(blocks=tuple(sorted(segment.blocks, key=lambda tool: facet(tool, "name") or 0)))


def _without_volatile_parts(segment: Segment) -> Segment:
    if not segment.blocks or segment.blocks[0].kind not in {SYSTEM, BILLING_HEADER}:
        return segment
    return segment._replace(blocks=tuple(map(_without_facets, segment.blocks)))


def _without_facets(block: ContentBlock) -> ContentBlock:
    rest = facet(block, "rest")
    return block if rest is None else block._replace(content_id=rest)


def _warmed(tree: PromptTree, lengths: LengthBook, use: Use, prediction: Prediction) -> Prediction:
    """A request that reads nothing reads most of its tools and system prompt, instead of writing them."""
    if prediction.hit != ROOT or prediction.cached == ROOT:
        return prediction
    prefix = next((n for n in tree.prefix(use.prompt.end) if tree.section[n] in {Section.TOOLS, Section.SYSTEM}), ROOT)
    bill = prediction.bill
    warm = min(round(WARM_SHARE * lengths.of(prefix, use.model).tokens), bill.write_5m_tokens + bill.write_1h_tokens)
    from_1h = min(warm, bill.write_1h_tokens)  # longer lifetimes stand first
    return prediction._replace(
        bill=Bill(bill.input_tokens, warm, bill.write_5m_tokens - (warm - from_1h), bill.write_1h_tokens - from_1h)
    )
