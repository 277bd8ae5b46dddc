from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.repeats import prompt_tail, repeated_tokens, window_hashes

WINDOW = 3


def naive(prompts):
    """Every window of every earlier prompt of the cache in a set, every token of the prompt looked at."""
    results = []
    for number, (cache, tokens, n_hit) in enumerate(prompts):
        seen = {
            tuple(earlier[start : start + WINDOW])
            for other, earlier, _ in prompts[:number]
            if other == cache
            for start in range(len(earlier) - WINDOW + 1)
        }
        covered = {
            start + offset
            for start in range(n_hit, len(tokens) - WINDOW + 1)
            if tuple(tokens[start : start + WINDOW]) in seen
            for offset in range(WINDOW)
        }
        results.append(len(covered))
    return results


@st.composite
def conversations(draw):
    """Prompts (cache, tokens, hit tokens): a prefix hit is one that an earlier prompt of the cache begins with."""
    prompts = []
    for _ in range(draw(st.integers(0, 6))):
        cache = draw(st.sampled_from("ab"))
        before = [tokens for other, tokens, _ in prompts if other == cache]
        start = draw(st.sampled_from(before))[: draw(st.integers(0, 12))] if before else []
        tokens = start + draw(st.lists(st.integers(0, 2), max_size=10))
        longest = max((common(tokens, other) for other in before), default=0)
        prompts.append((cache, tokens, draw(st.integers(0, longest))))
    return prompts


def common(tokens, other):
    return next(
        (n for n, (a, b) in enumerate(zip(tokens, other, strict=False)) if a != b), min(len(tokens), len(other))
    )


def fast(prompts, order):
    tails = [
        prompt_tail(prompts[n][0], n, np.array(prompts[n][1], dtype=np.uint32), prompts[n][2], WINDOW) for n in order
    ]
    found = repeated_tokens(tails, WINDOW)
    return [int(found[order.index(n)]) for n in range(len(prompts))]


@settings(max_examples=400)
@given(conversations(), st.randoms(use_true_random=False))
def test_repeated_tokens_are_those_found_one_by_one(prompts, chance):
    order = list(range(len(prompts)))
    chance.shuffle(order)
    assert fast(prompts, order) == naive(prompts)


def test_a_file_read_twice_counts_once_it_moved():
    file = [5, 6, 7, 8]
    prompts = [("a", [1, 2, *file], 0), ("a", [1, 2, *file, 3, *file, 9], 6), ("b", file, 0), ("b", [4, *file], 0)]
    assert fast(prompts, [0, 1, 2, 3]) == [0, 4, 0, 4]


def test_windows_shorter_than_the_limit_do_not_count():
    assert fast([("a", [5, 6], 0), ("a", [1, 5, 6], 0)], [0, 1]) == [0, 0]


@given(st.lists(st.sampled_from([0, 1, 2**31, 2**32 - 1]), max_size=40), st.integers(1, 5))
def test_hashes_are_equal_where_windows_are(tokens, window):
    windows = [tuple(tokens[start : start + window]) for start in range(len(tokens) - window + 1)]
    hashes = window_hashes(np.array(tokens, dtype=np.uint32), window).tolist()
    assert len(hashes) == len(windows)
    assert [[a == b for b in hashes] for a in hashes] == [[a == b for b in windows] for a in windows]


def test_nothing_is_nothing():
    assert repeated_tokens([]).tolist() == []
