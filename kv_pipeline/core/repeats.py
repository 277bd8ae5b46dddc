"""Reuse beyond prefixes: tokens that an unbounded prefix cache misses although their content was there before.

A token is *repeated* when it lies behind its prompt's hit prefix, in a window of `WINDOW_TOKENS` consecutive tokens
that all lie behind it, and an earlier prompt of the same cache had the same tokens in a row, at any position. Neither
side has to be aligned to blocks. That is an upper bound for caches that don't depend on position, such as CacheBlend's:
they would recompute some of it, and may need larger pieces.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kv_pipeline.core.hashing import TokenIds
from kv_pipeline.core.reuse import Ints

WINDOW_TOKENS: Final = 64
Words = npt.NDArray[np.uint64]

_MULTIPLIER: Final = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64. Source: Steele, Lea and Flood 2014, SplitMix64."""
_INVERSE: Final = pow(_MULTIPLIER, -1, 1 << 64)


class Prompt(NamedTuple):
    """What of a prompt was not sent before as it is.

    Attributes:
        cache: Which cache it uses.
        order: Place in time among the prompts of its cache.
        tail: Token ids from `WINDOW_TOKENS` - 1 tokens before the end of the hit prefix, or from the prompt's start.
        n_lead_tokens: How many of these belong to the hit prefix.
    """

    cache: Hashable
    order: int
    tail: TokenIds
    n_lead_tokens: int


def prompt_tail(
    cache: Hashable, order: int, tokens: TokenIds, n_hit_tokens: int, window_tokens: int = WINDOW_TOKENS
) -> Prompt:
    """A prompt cut to what is needed of it; windows before that are those of the prompt whose prefix it hits."""
    n_lead = min(n_hit_tokens, window_tokens - 1)
    return Prompt(cache, order, tokens[n_hit_tokens - n_lead :], n_lead)


def repeated_tokens(prompts: Iterable[Prompt], window_tokens: int = WINDOW_TOKENS) -> Ints:
    """Repeated tokens of each prompt.

    Takes about 50 bytes of memory for each token behind a hit prefix.

    Args:
        prompts: In any order; every prompt of a cache up to the last, or content that was seen is missed.
        window_tokens: Tokens a window.

    Returns:
        Shape (prompts,), in the order given.
    """
    caches: dict[Hashable, list[tuple[int, Prompt, Words]]] = {}
    n_prompts = 0
    for prompt in prompts:
        hashes = window_hashes(prompt.tail, window_tokens)
        caches.setdefault(prompt.cache, []).append((n_prompts, prompt._replace(tail=prompt.tail[:0]), hashes))
        n_prompts += 1
    repeated = np.zeros(n_prompts, dtype=np.int64)
    for members in caches.values():
        for (index, prompt, _), is_seen in zip(members, _seen_before(members), strict=True):
            starts = np.flatnonzero(is_seen[prompt.n_lead_tokens :])
            repeated[index] = _covered(starts, window_tokens)
    return repeated


def window_hashes(tokens: TokenIds, window_tokens: int) -> Words:
    """A hash of each window, shape (len(tokens) - window_tokens + 1,) or (0,): equal if the tokens are.

    Polynomials modulo 2^64 over mixed token ids, from differences of prefix sums. Different windows are told apart but
    for a chance of about 2^-64 a pair.
    """
    n_windows = len(tokens) - window_tokens + 1
    if n_windows < 1:
        return np.empty(0, dtype=np.uint64)
    terms = _mixed(tokens) * _powers(_MULTIPLIER, len(tokens))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
    hashes: Words = (sums[window_tokens:] - sums[:n_windows]) * _powers(_INVERSE, n_windows)
    return hashes


def _mixed(tokens: TokenIds) -> Words:
    """Token ids spread over 64 bits, so that sums of few small numbers don't meet. Source: SplitMix64."""
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(_MULTIPLIER)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words: Words = mixed ^ (mixed >> np.uint64(31))
    return words


def _powers(base: int, length: int) -> Words:
    factors = np.full(length, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _seen_before(members: list[tuple[int, Prompt, Words]]) -> list[npt.NDArray[np.bool_]]:
    """Per prompt of one cache, whether each window was in an earlier prompt."""
    lengths = [len(hashes) for *_, hashes in members]
    hashes = np.concatenate([hashes for *_, hashes in members])
    orders = np.repeat(np.array([prompt.order for _, prompt, _ in members], dtype=np.int64), lengths)
    by_hash = np.lexsort((orders, hashes))
    in_order = hashes[by_hash]
    is_first = np.concatenate([np.ones(min(1, len(in_order)), dtype=np.bool_), in_order[1:] != in_order[:-1]])
    first_order = orders[by_hash][is_first][np.cumsum(is_first) - 1]
    is_seen = np.empty(len(hashes), dtype=np.bool_)
    is_seen[by_hash] = first_order < orders[by_hash]
    return np.split(is_seen, np.cumsum(lengths)[:-1])


def _covered(starts: npt.NDArray[np.int64], window_tokens: int) -> int:
    """Tokens in at least one of the windows that start there, in ascending order."""
    if not len(starts):
        return 0
    return int(np.minimum(np.diff(starts), window_tokens).sum()) + window_tokens
