from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.coarser import coarser_prompt

PROMPTS = st.lists(st.lists(st.integers(0, 1), max_size=40), min_size=1, max_size=6)


class Ids:
    """Ids that say exactly which tokens a prompt has up to somewhere."""

    def __init__(self):
        self.known = {}

    def __call__(self, tokens):
        return self.known.setdefault(tuple(tokens), len(self.known) + 1)


def in_blocks(ids, tokens, size):
    """Full blocks and the partial one, from the tokens."""
    n_full = len(tokens) // size
    path = np.array([ids(tokens[: (n + 1) * size]) for n in range(n_full)], dtype=np.uint64)
    return path, ids(tokens) if len(tokens) % size else None


@given(PROMPTS, st.integers(1, 4), st.integers(1, 5))
def test_large_blocks_are_those_of_the_tokens(prompts, size, factor):
    ids = Ids()
    for tokens in prompts:
        path, tail = coarser_prompt(*in_blocks(ids, tokens, size), len(tokens), size, factor)
        expected, expected_tail = in_blocks(ids, tokens, size * factor)
        assert path.tolist() == expected.tolist()
        assert tail == expected_tail


@given(PROMPTS, st.integers(1, 4), st.integers(1, 5))
def test_what_is_not_known_is_not_made_up(prompts, size, factor):
    """Without the ids of tails, a large tail is known where small blocks fill it; without the last block it is not."""
    ids = Ids()
    for tokens in prompts:
        path, _ = in_blocks(ids, tokens, size)
        _, expected = in_blocks(ids, tokens, size * factor)
        assert coarser_prompt(path, None, len(tokens), size, factor)[1] == (None if len(tokens) % size else expected)
        if len(path):
            shorter, tail = coarser_prompt(path[:-1], None, len(tokens), size, factor)
            assert tail is None
            assert len(shorter) == (len(path) - 1) // factor
