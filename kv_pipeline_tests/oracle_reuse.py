"""Caches as lists and dictionaries, one block at a time: what the curves of `kv_pipeline.core.reuse_curves` must equal.

Uses are (cache, time, path) with integer times, in order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable
from itertools import combinations

Use = tuple[Hashable, int, list[int]]


def lru_hit_blocks(uses: list[Use], capacity: int) -> int:
    """A list of blocks per cache, most recent first: the prompt goes to the front, the end is cut off."""
    stacks: dict[Hashable, list[int]] = defaultdict(list)
    hits = 0
    for cache, _, path in uses:
        for block in path:
            if block not in stacks[cache]:
                break
            hits += 1
        stacks[cache] = (path + [block for block in stacks[cache] if block not in path])[:capacity]
    return hits


def best_hit_blocks(uses: list[Use], capacity: int) -> int:
    """The most hits that any choice of blocks to keep gives: every choice is tried."""
    total = 0
    for wanted in {cache for cache, _, _ in uses}:
        best = {frozenset[int](): 0}
        for path in (path for cache, _, path in uses if cache == wanted):
            after: dict[frozenset[int], int] = {}
            for held, hits in best.items():
                n_hits = hits + next((n for n, block in enumerate(path) if block not in held), len(path))
                candidates = sorted(held | set(path))
                for kept in combinations(candidates, min(capacity, len(candidates))):
                    after[frozenset(kept)] = max(after.get(frozenset(kept), 0), n_hits)
            best = after
        total += max(best.values())
    return total


def lru_evictions(uses: list[Use], capacity: int) -> int:
    """Blocks that an LRU cache threw away, those it could not take in included."""
    stacks: dict[Hashable, list[int]] = defaultdict(list)
    n_evicted = 0
    for cache, _, path in uses:
        stack = path + [block for block in stacks[cache] if block not in path]
        n_evicted += len(stack[capacity:])
        stacks[cache] = stack[:capacity]
    return n_evicted


def prefills(uses: list[Use], lifetime: float) -> dict[int, int]:
    """Number of computations to the number of blocks computed so often."""
    last: dict[tuple[Hashable, int], int] = {}
    n_computed: Counter[tuple[Hashable, int]] = Counter()
    for cache, time, path in uses:
        for block in path:
            if (cache, block) not in last or time - last[cache, block] > lifetime:
                n_computed[cache, block] += 1
            last[cache, block] = time
    return dict(Counter(n_computed.values()))


def working_set(uses: list[Use], moment: float, window: float) -> int:
    """Blocks whose last use up to a moment is no longer ago than the window."""
    last = {(cache, block): time for cache, time, path in uses if time <= moment for block in path}
    return sum(moment - time <= window for time in last.values())


def resident_block_seconds(uses: list[Use], lifetime: float) -> float:
    """With integer times and lifetimes nothing changes within a second, so its middle stands for all of it."""
    if not uses:
        return 0
    return sum(working_set(uses, second + 0.5, lifetime) for second in range(uses[0][1], uses[-1][1]))
