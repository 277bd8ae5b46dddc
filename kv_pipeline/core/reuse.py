"""When each block of a prompt was used before: one pass that every lifetime and every capacity can be read from.

A request touches a whole prefix of blocks. So the blocks that an earlier request was the last to use are always one
stretch at the end of its path: whoever came later took a prefix of it away. A *run* is such a stretch as a later
request finds it: blocks used by one request, then by none, then together by another. A prompt of thousands of blocks
has a run or two, and everything here counts runs with their length, never single blocks.

Along a prompt the runs were last used ever longer ago, and ever more other blocks were used since. That makes the
blocks which a cache still holds a prefix, for any lifetime and any capacity.

LRU order: blocks of a later request come before those of an earlier one; within a request the root end comes first, so
the leaf end is evicted first and no block outlives its parent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from kv_pipeline.core.paths import BlockNumbers
from kv_pipeline.core.simulate import Use

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_NEVER: Final = 0


@dataclass(frozen=True, slots=True)
class Reuse:
    """Uses of blocks by the requests of one or more caches.

    Attributes:
        block_size: Tokens a block.
        prompt_tokens: Tokens of all prompts, partial blocks included.
        times_s: Shape (requests,), ascending: time of each request.
        n_blocks: Shape (requests,): full blocks of each prompt.
        caches: Shape (requests,): number of the cache that each request uses, from 0.
        run_user: Shape (runs,), ascending: request that finds the run; in a request from root to leaf.
        run_previous: Shape (runs,): request that used it last before.
        run_blocks: Shape (runs,): its length.
        run_distance_blocks: Shape (runs,): other blocks of the cache that come before it in LRU order.
        prefill_counts: Per finite lifetime measured: blocks computed once (index 0), twice, …
    """

    block_size: int
    prompt_tokens: int
    times_s: Floats
    n_blocks: Ints
    caches: Ints
    run_user: Ints
    run_previous: Ints
    run_blocks: Ints
    run_distance_blocks: Ints
    prefill_counts: dict[float, Ints]

    @property
    def gaps_s(self) -> Floats:
        """Shape (runs,): time since each run's previous use."""
        return self.times_s[self.run_user] - self.times_s[self.run_previous]

    @property
    def n_references(self) -> int:
        """Blocks of all prompts."""
        return int(self.n_blocks.sum())

    @property
    def n_distinct(self) -> int:
        """Different blocks, counted in each cache."""
        return self.n_references - int(self.run_blocks.sum())

    @property
    def span_s(self) -> float:
        """Time from the first request to the last."""
        return float(self.times_s[-1] - self.times_s[0]) if len(self.times_s) else 0.0

    def last_uses(self) -> Ints:
        """Shape (requests,): blocks of each request that nobody used again."""
        taken = np.bincount(self.run_previous, weights=self.run_blocks, minlength=len(self.n_blocks))
        return self.n_blocks - taken.astype(np.int64)


class _Cache:
    """What one cache has seen: who used each block last, and how many blocks each request was the last to use.

    Requests are numbered from 1 here. The numbers of blocks are kept in a Fenwick tree, so that the blocks used since a
    request are summed in logarithmic time.
    """

    __slots__ = ("extra_prefills", "last_user", "n_held", "requests", "tree")

    def __init__(self, n_blocks: int, n_lifetimes: int) -> None:
        self.last_user = np.zeros(n_blocks, dtype=np.int32)
        self.extra_prefills = np.zeros((n_lifetimes, n_blocks), dtype=np.uint32)
        self.requests: list[int] = [-1]
        self.tree: list[int] = [0]
        self.n_held = 0

    def blocks_since(self, user: int) -> int:
        """Blocks that were used after a request."""
        tree, total = self.tree, self.n_held
        while user:
            total -= tree[user]
            user &= user - 1
        return total

    def take(self, user: int, n_blocks: int) -> None:
        """Blocks that a request was the last to use are about to be used again."""
        tree = self.tree
        self.n_held -= n_blocks
        while user < len(tree):
            tree[user] -= n_blocks
            user += user & -user

    def push(self, request: int, n_blocks: int) -> None:
        """A request has used blocks."""
        number = len(self.tree)
        total, step = n_blocks, 1
        while step < number & -number:
            total += self.tree[number - step]
            step <<= 1
        self.tree.append(total)
        self.requests.append(request)
        self.n_held += n_blocks


class _Pass:
    """The runs found so far."""

    def __init__(self, n_blocks: int, lifetimes_s: Sequence[float]) -> None:
        self.n_numbers = n_blocks
        self.lifetimes_s = sorted(lifetimes_s)
        self.caches: dict[Hashable, _Cache] = {}
        self.cache_numbers: dict[Hashable, int] = {}
        self.requests: list[tuple[float, int, int]] = []
        self.runs: list[tuple[int, int, int, int]] = []

    def add(self, use: Use) -> None:
        cache = self.caches.get(use.cache)
        if cache is None:
            cache = self.caches[use.cache] = _Cache(self.n_numbers, len(self.lifetimes_s))
            self.cache_numbers[use.cache] = len(self.cache_numbers)
        request = len(self.requests)
        self.requests.append((use.time_s, len(use.path), self.cache_numbers[use.cache]))
        starts, users = _runs(cache.last_user[use.path])
        distances = [cache.blocks_since(user) for user in users]
        gaps_s = [use.time_s - self.requests[cache.requests[user]][0] for user in users]
        for n_blocks, user, distance in zip(_lengths(starts), users, distances, strict=True):
            cache.take(user, n_blocks)
            self.runs.append((request, cache.requests[user], n_blocks, distance))
        self._count_prefills(cache, use.path, starts, gaps_s)
        cache.last_user[use.path] = len(cache.tree)
        cache.push(request, len(use.path))

    def _count_prefills(self, cache: _Cache, path: BlockNumbers, starts: list[int], gaps_s: list[float]) -> None:
        """Blocks whose lifetime has passed are computed once more."""
        if not gaps_s:
            return
        for index, lifetime_s in enumerate(self.lifetimes_s):
            first_expired = bisect_right(gaps_s, lifetime_s)
            if first_expired == len(gaps_s):
                break
            cache.extra_prefills[index, path[starts[first_expired] : starts[-1]]] += 1

    def prefill_counts(self) -> dict[float, Ints]:
        """Per lifetime the number of blocks computed once, twice, …, in all caches."""
        used = [(cache.extra_prefills, cache.last_user != _NEVER) for cache in self.caches.values()]
        return {
            lifetime_s: add_counts(np.bincount(extra[index][mask]) for extra, mask in used)
            for index, lifetime_s in enumerate(self.lifetimes_s)
        }


def _runs(last_users: npt.NDArray[np.int32]) -> tuple[list[int], list[int]]:
    """Starts of the runs and the end of the last one, and who used each run before; blocks never used are left out."""
    if not len(last_users):
        return [0], []
    cuts = np.flatnonzero(last_users[1:] != last_users[:-1]) + 1
    starts = [0, *cuts.tolist()]
    users = last_users[starts].tolist()
    if users[-1] == _NEVER:
        return starts, users[:-1]
    return [*starts, len(last_users)], users


def _lengths(starts: list[int]) -> list[int]:
    return [end - start for start, end in pairwise(starts)]


def measure_reuse(
    uses: Iterable[Use], n_blocks: int, *, block_size: int, prompt_tokens: int, lifetimes_s: Sequence[float] = ()
) -> Reuse:
    """Find the runs of all requests.

    Args:
        uses: Requests in order of time. Requests with equal cache share what they hold; models never do. Paths are
            prefix-closed: equal numbers mean equal prefixes, and no number comes twice in a path.
        n_blocks: Block numbers are below this.
        block_size: Tokens a block.
        prompt_tokens: Tokens of all prompts.
        lifetimes_s: Finite lifetimes in seconds for which to count how often each block was computed.
    """
    found = _Pass(n_blocks, lifetimes_s)
    for use in uses:
        found.add(use)
    requests = np.array(found.requests, dtype=np.float64).reshape(-1, 3).T
    users, previous, run_blocks, distances = np.array(found.runs, dtype=np.int64).reshape(-1, 4).T.copy()
    return Reuse(
        block_size=block_size,
        prompt_tokens=prompt_tokens,
        times_s=requests[0].copy(),
        n_blocks=requests[1].astype(np.int64),
        caches=requests[2].astype(np.int64),
        run_user=users,
        run_previous=previous,
        run_blocks=run_blocks,
        run_distance_blocks=distances,
        prefill_counts=found.prefill_counts(),
    )


def add_counts(parts: Iterable[Ints]) -> Ints:
    """Sum of histograms of different lengths."""
    parts = list(parts)
    total = np.zeros(max(map(len, parts), default=0), dtype=np.int64)
    for part in parts:
        total[: len(part)] += part
    return total
