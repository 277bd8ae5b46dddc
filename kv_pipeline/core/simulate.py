"""The *blocks* model of a prompt cache: the longest prefix of blocks that the cache still holds is a hit.

Every request reads its prefix and (re)writes all its blocks; a block is held for a lifetime from its last use. Nothing
else expires: capacity is unbounded, breakpoints don't matter, and a block can be read the moment it was written.
The *API* model, with breakpoints and look-back, is a model of its own and will live beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from kv_pipeline.core.paths import BlockNumbers

LIFETIMES_S: Final[Mapping[str, float]] = {"infinite": math.inf, "5m": 300.0, "1h": 3600.0}
"""Simulated lifetimes by their name in tables. Source: platform.claude.com, "Prompt caching"."""


def prefix_hit_blocks(
    paths: Sequence[BlockNumbers], times_s: Sequence[float], lifetimes_s: Sequence[float]
) -> npt.NDArray[np.int64]:
    """Hit blocks of each request that shares one cache, for several lifetimes in one pass.

    Along a prompt the last use of its blocks never gets later, because whoever used a block used all before it.
    So the blocks within a lifetime are a prefix, and a binary search finds its end.

    Args:
        paths: Per request its block numbers in prompt order; equal numbers mean equal prefixes.
        times_s: Per request its time in seconds, not decreasing.
        lifetimes_s: Lifetimes from the last use in seconds; infinity is allowed. A gap equal to it still hits.

    Returns:
        Shape (requests, lifetimes).
    """
    n_blocks = 1 + max((int(path.max()) for path in paths if len(path)), default=-1)
    last_use_s = np.full(n_blocks, -np.inf)
    hits = np.zeros((len(paths), len(lifetimes_s)), dtype=np.int64)
    for index, (path, time_s) in enumerate(zip(paths, times_s, strict=True)):
        gaps_s = time_s - last_use_s[path]
        n_seen = int(np.searchsorted(gaps_s, np.inf, side="left"))
        hits[index] = np.searchsorted(gaps_s[:n_seen], lifetimes_s, side="right")
        last_use_s[path] = time_s
    return hits
