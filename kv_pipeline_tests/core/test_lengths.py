from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.content_blocks import ContentBlock
from kv_pipeline.core.lengths import TYPICAL, LengthBook, Ratios, learn_ratios
from kv_pipeline.core.prompts import ROOT, Request, Segment, Sent, Settings


def block(name, tokens):
    return ContentBlock("text", name, name, False, False, False, False, tokens, ())


def book(*tokens, ratios=TYPICAL):
    """A prompt of messages with these counted tokens, and the book of its lengths."""
    segments = {n: Segment("user", (block(n, count),)) for n, count in enumerate(tokens)}
    tree, ((end, _),) = Sent([Request(Settings("m"), None, None, tuple(segments), ())], segments).place()
    nodes = [node for node in reversed(list(tree.prefix(end))) if tree.block[node] is not None]
    return LengthBook(tree, {"m": ratios}), nodes


SECTIONS = st.tuples(st.integers(1, 50_000), st.integers(1, 50_000), st.integers(1, 200_000))


@given(st.lists(SECTIONS, min_size=1, max_size=30), st.floats(0.8, 1.4))
def test_one_ratio_for_all_sections_is_found(counted, ratio):
    found = learn_ratios([(sections, round(sum(sections) * ratio)) for sections in counted])
    for sections in counted:
        expected = sum(sections) * ratio
        assert found.tokens(sections) + found.overhead_tokens == pytest.approx(expected, rel=0.02, abs=2)


def test_sections_have_ratios_of_their_own():
    counted = [(10_000, 2_000, messages) for messages in range(1_000, 100_000, 5_000)]
    bills = [(c, round(1.3 * c[0] + 1.1 * c[1] + 1.15 * c[2])) for c in counted]
    found = learn_ratios(bills)
    assert found.messages == pytest.approx(1.15, abs=0.01)
    assert found.tokens((10_000, 2_000, 0)) + found.overhead_tokens == pytest.approx(15_200, rel=0.03)


def test_nothing_billed_is_typical():
    assert learn_ratios([]) == TYPICAL
    assert learn_ratios([((0, 0, 0), 5), ((1, 1, 1), 0)]) == TYPICAL


def test_framing_is_the_usual_one():
    assert learn_ratios([((1, 1, 1), 3)], [3, 3, 900]).framing_tokens == 3


def test_a_billed_length_is_that_length():
    lengths, nodes = book(100, 100)
    lengths.learn(nodes[0], 137)
    assert lengths.of(nodes[0], "m") == (137, True)
    assert lengths.of(ROOT, "m") == (0, True)


def test_an_estimate_goes_on_from_the_longest_billed_prefix():
    lengths, nodes = book(100, 100, 100, ratios=Ratios(1, 1, 2.0, 10.0, 0))
    assert [lengths.of(node, "m").tokens for node in nodes] == [210, 410, 610]
    lengths.learn(nodes[0], 150)
    assert [lengths.of(node, "m") for node in nodes[1:]] == [(350, False), (550, False)]


def test_an_estimate_within_a_billed_prompt_is_in_proportion():
    lengths, nodes = book(100, 300, 100)
    lengths.learn(nodes[1], 800)
    lengths.learn_within(nodes[0], nodes[1])
    assert lengths.of(nodes[0], "m") == (200, False)


def test_models_without_bills_are_typical():
    lengths, nodes = book(100)
    assert lengths.of(nodes[0], "other").tokens == 112
