"""Hits by lifetime and by capacity, the Belady bound, working sets and prefills, as small frames to print or draw.

Every function takes one or more `Reuse`, one for each group of caches that is measured alone (a conversation, or the
whole fleet), and adds them up. A capacity is that of each cache. docs/cache-model.md has the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Final, Literal, NamedTuple

import numpy as np
import polars as pl

from kv_pipeline.core.reuse import Floats, Ints, Reuse, add_counts

LIFETIME_TABLE_S: Final[dict[str, float]] = {
    "1m": 60, "2m": 120, "5m": 300, "10m": 600, "15m": 900, "30m": 1800, "1h": 3600, "2h": 7200, "4h": 14400,
    "8h": 28800, "12h": 43200, "24h": 86400, "infinite": math.inf,
}  # fmt: skip
"""Lifetimes of the table, by name."""
PREFILL_LIFETIMES_S: Final = (60.0, 300.0, 1800.0, 3600.0, 86400.0)
"""Finite lifetimes for which each block's computations are counted, unless asked otherwise."""
WINDOWS_S: Final = (60, 300, 900, 3600)
"""Windows of the working set."""
SMALLEST_CAPACITY_BLOCKS: Final = 16

TTL_CURVE: Final = pl.Schema(
    {
        "lifetime_s": pl.Float64(), "lifetime": pl.String(), "hit_tokens": pl.Int64(), "prompt_tokens": pl.Int64(),
        "hit_rate": pl.Float64(), "prefill_blocks": pl.Int64(), "mean_resident_blocks": pl.Float64(),
    }
)  # fmt: skip
CAPACITY_CURVE: Final = pl.Schema(
    {
        "capacity_blocks": pl.Int64(), "capacity_tokens": pl.Int64(), "capacity_gb": pl.Float64(),
        "lru_hit_tokens": pl.Int64(), "lru_hit_rate": pl.Float64(), "belady_hit_tokens": pl.Int64(),
        "belady_hit_rate": pl.Float64(),
    }
)  # fmt: skip
WORKING_SET: Final = pl.Schema({"t_s": pl.Float64(), "window_s": pl.Int64(), "blocks": pl.Int64()})
WORKING_SET_SUMMARY: Final = pl.Schema({"window_s": pl.Int64(), "mean_blocks": pl.Float64(), "max_blocks": pl.Int64()})
BLOCK_PREFILLS: Final = pl.Schema({"lifetime_s": pl.Float64(), "n_prefills": pl.Int64(), "n_blocks": pl.Int64()})


class ReuseFrames(NamedTuple):
    """All that is drawn or printed of some groups; the functions of the same names say what the columns mean.

    Attributes:
        ttl_curve: Columns of `TTL_CURVE`.
        capacity_curve: Columns of `CAPACITY_CURVE`.
        working_set: Columns of `WORKING_SET`; empty for more than one group, which have no clock in common.
        working_set_summary: Columns of `WORKING_SET_SUMMARY`.
        block_prefills: Columns of `BLOCK_PREFILLS`.
        smallest_capacities: Capacities from which more is of no use.
    """

    ttl_curve: pl.DataFrame
    capacity_curve: pl.DataFrame
    working_set: pl.DataFrame
    working_set_summary: pl.DataFrame
    block_prefills: pl.DataFrame
    smallest_capacities: SmallestCapacities


class SmallestCapacities(NamedTuple):
    """Capacities of each cache from which more is of no use, in blocks.

    Attributes:
        no_eviction_blocks: LRU never evicts: all different blocks of the largest cache.
        lru_lossless_blocks: LRU hits all that an unbounded cache hits: the largest stack distance.
        belady_lossless_blocks: No policy can do so with less: the most blocks that are still to be used again at once.
    """

    no_eviction_blocks: int
    lru_lossless_blocks: int
    belady_lossless_blocks: int


def lifetime_hits(reuse: Reuse, lifetimes_s: Sequence[float]) -> Ints:
    """Hit blocks for each lifetime from the last use; a gap equal to it still hits. Shape (lifetimes,)."""
    order = np.argsort(reuse.gaps_s)
    below = np.searchsorted(reuse.gaps_s[order], np.asarray(lifetimes_s, dtype=np.float64), side="right")
    return _sums(reuse.run_blocks[order])[below]


def lru_hits(reuse: Reuse, capacities_blocks: Sequence[int]) -> Ints:
    """Hit blocks of LRU caches for each capacity. Shape (capacities,).

    A run whose first block has `d` other blocks before it fills the stack distances d + 1 … d + length.
    """
    capacities = np.asarray(capacities_blocks, dtype=np.int64)
    return _above(reuse.run_distance_blocks, capacities) - _above(
        reuse.run_distance_blocks + reuse.run_blocks, capacities
    )


def _above(values: Ints, limits: Ints) -> Ints:
    """Per limit the sum of what it exceeds smaller values by."""
    in_order = np.sort(values)
    n_below = np.searchsorted(in_order, limits)
    return n_below * limits - _sums(in_order)[n_below]


def belady_hits(reuse: Reuse, capacities_blocks: Sequence[int]) -> Ints:
    """Hit blocks of the best possible caches for each capacity: no policy hits more. Shape (capacities,).

    Holding a run from one use to the next costs its length for as long, and pays its length once. Dropping what is
    needed last, whenever too much is held, is optimal. Whoever uses a block uses its parent, so what is needed last is
    always a leaf end: no block outlives its parent here either.
    """
    parts = [_Intervals(reuse, cache) for cache in range(int(reuse.caches.max(initial=-1)) + 1)]
    return np.array([sum(part.hits(int(capacity)) for part in parts) for capacity in capacities_blocks], dtype=np.int64)


class _Intervals:
    """The runs of one cache as intervals from one use to the next."""

    def __init__(self, reuse: Reuse, cache: int) -> None:
        mine = reuse.caches[reuse.run_user] == cache
        self.users, previous, self.blocks = (
            values[mine] for values in (reuse.run_user, reuse.run_previous, reuse.run_blocks)
        )
        self.by_start = np.argsort(previous, kind="stable")
        self.starts = previous[self.by_start]

    def peak_blocks(self) -> int:
        """Most blocks held at once if all runs are."""
        changes = np.zeros(int(self.users.max(initial=-1)) + 1, dtype=np.int64)
        np.add.at(changes, self.starts, self.blocks[self.by_start])
        np.subtract.at(changes, self.users, self.blocks)
        return int(np.cumsum(changes).max(initial=0))

    def hits(self, capacity_blocks: int) -> int:
        """Blocks that can be held to their next use.

        Runs are in order of their users, in a request from root to leaf, so the highest number is needed last.
        """
        total = int(self.blocks.sum())
        if capacity_blocks >= self.peak_blocks():
            return total
        users, held = self.users.tolist(), self.blocks.tolist()
        needed_last: list[int] = []
        n_held = n_dropped = next_ended = 0
        for run, start in zip(self.by_start.tolist(), self.starts.tolist(), strict=True):
            while users[next_ended] <= start:
                n_held -= held[next_ended]
                next_ended += 1
            heappush(needed_last, -run)
            n_held += held[run]
            while n_held > capacity_blocks:
                last = -needed_last[0]
                dropped = min(held[last], n_held - capacity_blocks)
                held[last] -= dropped
                n_held -= dropped
                n_dropped += dropped
                if not held[last]:
                    heappop(needed_last)
        return total - n_dropped


def smallest_capacities(reuses: Iterable[Reuse]) -> SmallestCapacities:
    """Capacities from which more is of no use, for every cache of every group."""
    distinct, lru, belady = [0], [0], [0]
    for reuse in reuses:
        first_uses = reuse.n_blocks - np.bincount(
            reuse.run_user, weights=reuse.run_blocks, minlength=len(reuse.n_blocks)
        ).astype(np.int64)
        distinct.append(int(np.bincount(reuse.caches, weights=first_uses).max(initial=0)))
        lru.append(int((reuse.run_distance_blocks + reuse.run_blocks).max(initial=0)))
        belady += [_Intervals(reuse, cache).peak_blocks() for cache in range(int(reuse.caches.max(initial=-1)) + 1)]
    return SmallestCapacities(max(distinct), max(lru), max(belady))


def power_of_two_capacities(no_eviction_blocks: int) -> list[int]:
    """Powers of two from `SMALLEST_CAPACITY_BLOCKS` to the first that needs no eviction."""
    last = max(no_eviction_blocks, SMALLEST_CAPACITY_BLOCKS)
    return [1 << bits for bits in range(SMALLEST_CAPACITY_BLOCKS.bit_length() - 1, (last - 1).bit_length() + 1)]


def resident_block_seconds(reuse: Reuse, lifetime_s: float) -> float:
    """Blocks held, integrated over the time from the first request to the last."""
    again = np.minimum(reuse.gaps_s, lifetime_s) @ reuse.run_blocks
    to_the_end_s = np.minimum(reuse.times_s[-1:] - reuse.times_s, lifetime_s)
    return float(again + to_the_end_s @ reuse.last_uses())


def ttl_curve(reuses: Sequence[Reuse], lifetimes_s: dict[str, float] | None = None) -> pl.DataFrame:
    """Hits, computations and mean size of the cache by lifetime.

    Args:
        reuses: Groups to add up; all of one block size.
        lifetimes_s: Name to seconds, infinity allowed; `LIFETIME_TABLE_S` if None.

    Returns:
        Columns of `TTL_CURVE`, a row per lifetime. hit_rate is hit_tokens / prompt_tokens, 0 without tokens.
        prefill_blocks counts blocks computed, again and again if lost. mean_resident_blocks is the time average of
        the blocks held, over all groups' time from first to last request; null if that is no time.
    """
    lifetimes_s = LIFETIME_TABLE_S if lifetimes_s is None else lifetimes_s
    limits = [float(limit) for limit in lifetimes_s.values()]
    hit_blocks = sum((lifetime_hits(reuse, limits) for reuse in reuses), _zeros(len(limits)))
    hit_tokens = _block_size(reuses) * hit_blocks
    span_s = sum(reuse.span_s for reuse in reuses)
    means = [
        sum(resident_block_seconds(reuse, limit) for reuse in reuses) / span_s if span_s else None for limit in limits
    ]
    prompt_tokens = sum(reuse.prompt_tokens for reuse in reuses)
    columns = {
        "lifetime_s": limits,
        "lifetime": list(lifetimes_s),
        "hit_tokens": hit_tokens,
        "prompt_tokens": [prompt_tokens] * len(limits),
        "hit_rate": _rates(hit_tokens, prompt_tokens),
        "prefill_blocks": sum(reuse.n_references for reuse in reuses) - hit_blocks,
        "mean_resident_blocks": means,
    }
    return pl.DataFrame(columns, schema=TTL_CURVE)


def capacity_curve(
    reuses: Sequence[Reuse], kv_bytes_per_token: float | None = None, capacities_blocks: Sequence[int] | None = None
) -> pl.DataFrame:
    """Hits of LRU and of the best possible cache by capacity.

    Args:
        reuses: Groups to add up; all of one block size.
        kv_bytes_per_token: KV bytes a token of the model, for `capacity_gb` (10^9 bytes); null without.
        capacities_blocks: Blocks that each cache holds; powers of two if None.

    Returns:
        Columns of `CAPACITY_CURVE`, a row per capacity.
    """
    if capacities_blocks is None:
        capacities_blocks = power_of_two_capacities(smallest_capacities(reuses).no_eviction_blocks)
    block_size = _block_size(reuses)
    prompt_tokens = sum(reuse.prompt_tokens for reuse in reuses)
    none = _zeros(len(capacities_blocks))
    lru = block_size * sum((lru_hits(reuse, capacities_blocks) for reuse in reuses), none)
    belady = block_size * sum((belady_hits(reuse, capacities_blocks) for reuse in reuses), none)
    tokens = block_size * np.asarray(capacities_blocks, dtype=np.int64)
    columns = {
        "capacity_blocks": list(capacities_blocks),
        "capacity_tokens": tokens,
        "capacity_gb": [None] * len(tokens) if kv_bytes_per_token is None else tokens * (kv_bytes_per_token / 1e9),
        "lru_hit_tokens": lru,
        "lru_hit_rate": _rates(lru, prompt_tokens),
        "belady_hit_tokens": belady,
        "belady_hit_rate": _rates(belady, prompt_tokens),
    }
    return pl.DataFrame(columns, schema=CAPACITY_CURVE)


def working_set(reuse: Reuse, windows_s: Sequence[int] = WINDOWS_S, max_points: int = 1000) -> pl.DataFrame:
    """Different blocks used within the window before a moment, over time.

    Args:
        reuse: Group of caches; blocks of different caches are different.
        windows_s: Windows in seconds; a block used exactly so long ago still counts.
        max_points: At most this many moments: those of the requests if there are no more, else evenly spread.

    Returns:
        Columns of `WORKING_SET`, a row per window and moment; `t_s` on the clock of the requests' times.
    """
    moments = np.unique(reuse.times_s)
    if len(moments) > max_points:
        moments = np.linspace(moments[0], moments[-1], max_points)
    blocks = [working_set_blocks(reuse, moments, window_s) for window_s in windows_s]
    columns = {
        "t_s": np.tile(moments, len(windows_s)),
        "window_s": np.repeat(np.asarray(windows_s, dtype=np.int64), len(moments)),
        "blocks": np.concatenate([_zeros(0), *blocks]),
    }
    return pl.DataFrame(columns, schema=WORKING_SET)


def working_set_summary(reuses: Sequence[Reuse], windows_s: Sequence[int] = WINDOWS_S) -> pl.DataFrame:
    """Mean and maximum of the working set.

    Args:
        reuses: Groups; the mean is over the time of all, the maximum is that of the largest.
        windows_s: Windows in seconds.

    Returns:
        Columns of `WORKING_SET_SUMMARY`, a row per window; the mean is null if the groups last no time.
    """
    span_s = sum(reuse.span_s for reuse in reuses)
    rows = [
        (
            window_s,
            sum(resident_block_seconds(reuse, window_s) for reuse in reuses) / span_s if span_s else None,
            # A working set grows with requests only, so its maximum is right after one of them.
            max(
                (int(working_set_blocks(reuse, reuse.times_s, window_s).max(initial=0)) for reuse in reuses), default=0
            ),
        )
        for window_s in windows_s
    ]
    return pl.DataFrame(rows, schema=WORKING_SET_SUMMARY, orient="row")


def working_set_blocks(reuse: Reuse, moments_s: Floats, window_s: float) -> Ints:
    """Blocks whose last use at each moment was at most the window ago. Shape (moments,)."""
    used = _cumulative(reuse.times_s, reuse.n_blocks, moments_s, "right")
    is_renewed = reuse.gaps_s <= window_s
    renewed = reuse.run_user[is_renewed]
    lost = np.where(is_renewed, 0, reuse.run_blocks)
    expiring = reuse.last_uses() + np.bincount(reuse.run_previous, weights=lost, minlength=len(reuse.times_s)).astype(
        np.int64
    )
    return (
        used
        - _cumulative(reuse.times_s[renewed], reuse.run_blocks[is_renewed], moments_s, "right")
        - _cumulative(reuse.times_s, expiring, moments_s - window_s, "left")
    )


def _cumulative(times_s: Floats, amounts: Ints, moments_s: Floats, side: Literal["left", "right"]) -> Ints:
    """Sum of the amounts up to each moment, without those at the moment itself if the side is left."""
    return _sums(amounts)[np.searchsorted(times_s, moments_s, side=side)]


def _sums(amounts: Ints) -> Ints:
    """Sums of the first 0, 1, … amounts."""
    return np.concatenate([_zeros(1), np.cumsum(amounts)])


def block_prefills(reuses: Sequence[Reuse]) -> pl.DataFrame:
    """How many blocks were computed how often, for each lifetime that the groups were measured for.

    Returns:
        Columns of `BLOCK_PREFILLS`, a row per lifetime and number of computations that occurs.
    """
    lifetimes_s = sorted({lifetime_s for reuse in reuses for lifetime_s in reuse.prefill_counts})
    frames = [pl.DataFrame(schema=BLOCK_PREFILLS)]
    for lifetime_s in lifetimes_s:
        n_blocks = add_counts(reuse.prefill_counts[lifetime_s] for reuse in reuses)
        occurring = np.flatnonzero(n_blocks)
        columns = {"n_prefills": occurring + 1, "n_blocks": n_blocks[occurring]}
        frames.append(pl.DataFrame(columns).select(pl.lit(float(lifetime_s)).alias("lifetime_s"), pl.all()))
    return pl.concat(frames)


def reuse_frames(reuses: Sequence[Reuse], kv_bytes_per_token: float | None = None) -> ReuseFrames:
    """Everything of some groups, in the default lifetimes, capacities and windows.

    Args:
        reuses: Groups to add up; all of one block size.
        kv_bytes_per_token: KV bytes a token of the model, for capacities in GB.
    """
    return ReuseFrames(
        ttl_curve=ttl_curve(reuses),
        capacity_curve=capacity_curve(reuses, kv_bytes_per_token),
        working_set=working_set(reuses[0]) if len(reuses) == 1 else pl.DataFrame(schema=WORKING_SET),
        working_set_summary=working_set_summary(reuses),
        block_prefills=block_prefills(reuses),
        smallest_capacities=smallest_capacities(reuses),
    )


def _block_size(reuses: Sequence[Reuse]) -> int:
    sizes = {reuse.block_size for reuse in reuses}
    if len(sizes) > 1:
        raise ValueError(f"Groups of different block sizes can't be added: {sorted(sizes)} tokens.")
    return sizes.pop() if sizes else 0


def _zeros(length: int) -> Ints:
    return np.zeros(length, dtype=np.int64)


def _rates(tokens: Ints, prompt_tokens: int) -> Floats:
    return tokens / prompt_tokens if prompt_tokens else np.zeros(len(tokens))
