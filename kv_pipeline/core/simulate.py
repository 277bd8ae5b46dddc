"""The *blocks* model of a prompt cache: the longest prefix of blocks that the cache still holds is a hit.

Every request reads its prefix and (re)writes all its blocks; a block is held for a lifetime from its last use. Nothing
else expires: capacity is unbounded, breakpoints don't matter, and a block can be read the moment it was written.
The *API* model, with breakpoints and look-back, is a model of its own and will live beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kv_pipeline.core.paths import BlockNumbers

LIFETIMES_S: Final[Mapping[str, float]] = {"infinite": math.inf, "5m": 300.0, "1h": 3600.0}
"""Simulated lifetimes by their name in tables. Source: platform.claude.com, "Prompt caching"."""


class Use(NamedTuple):
    """One request as a cache sees it.

    Attributes:
        cache: Which cache it uses: who shares it, and the model, since models never share.
        time_s: Time of the request in seconds.
        path: Its block numbers in prompt order; equal numbers mean equal prefixes.
    """

    cache: Hashable
    time_s: float
    path: BlockNumbers


def prefix_hit_blocks(
    uses: Iterable[Use], n_blocks: int, lifetimes_s: Iterable[float] = tuple(LIFETIMES_S.values())
) -> npt.NDArray[np.int64]:
    """Hit blocks of each request, for several lifetimes in one pass.

    Along a prompt the last use of its blocks never gets later, because whoever used a block used all before it.
    So the blocks within a lifetime are a prefix, and a binary search finds its end.

    Args:
        uses: Requests in order of time.
        n_blocks: Block numbers are below this.
        lifetimes_s: Lifetimes from the last use in seconds; infinity is allowed. A gap equal to it still hits.

    Returns:
        Shape (requests, lifetimes).
    """
    limits = np.array(tuple(lifetimes_s))
    last_use_s: dict[Hashable, npt.NDArray[np.float64]] = {}
    hits = []
    for cache, time_s, path in uses:
        used = last_use_s.get(cache)
        if used is None:
            used = last_use_s[cache] = np.full(n_blocks, -np.inf)
        gaps_s = time_s - used[path]
        n_seen = int(np.searchsorted(gaps_s, np.inf, side="left"))
        hits.append(np.searchsorted(gaps_s[:n_seen], limits, side="right"))
        used[path] = time_s
    return np.array(hits, dtype=np.int64).reshape(-1, len(limits))
