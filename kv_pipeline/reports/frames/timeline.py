"""The block timeline: what became of each block position from request to request, as few rectangles."""

from __future__ import annotations

from typing import Final

import polars as pl

STATES: Final = ("cached", "cached_by_others", "kept_uncached", "rewritten", "added", "dropped")
"""What became of a range of block positions; see `block_rectangles`."""

RECTANGLES: Final = {
    "request_index": pl.UInt32, "agent_id": pl.String, "state": pl.String, "from_block": pl.Int64,
    "to_block": pl.Int64,
}  # fmt: skip


def block_rectangles(requests: pl.DataFrame) -> pl.DataFrame:
    """At most five rectangles a request, whatever its number of blocks.

    Compared with the agent's request before, a request's positions are in prompt order
    `cached` (kept, and in the simulated cache), `cached_by_others` (not of that request, but in the cache),
    `kept_uncached` (kept, but no longer in the cache), `rewritten` (another block stood there), `added` (beyond its
    end), and behind the prompt's own end `dropped` (blocks that only the request before had).

    Args:
        requests: Requests of one conversation in order: request_index, agent_id, n_blocks, agent_shared_blocks
            (positions kept), hit_blocks (positions in the cache).

    Returns:
        Rows of `RECTANGLES`: half-open ranges of positions that partition 0 to the larger of both prompts' ends.
    """
    numbers = ["n_blocks", "agent_shared_blocks", "hit_blocks"]
    ends = requests.with_columns(pl.col(numbers).cast(pl.Int64).fill_null(0)).select(
        "request_index", "agent_id", n="n_blocks", kept="agent_shared_blocks", hit="hit_blocks",
        before=pl.col("n_blocks").shift(1).over("agent_id").fill_null(0),
    )  # fmt: skip
    prefix = pl.max_horizontal("kept", "hit")
    rewritten_end = pl.max_horizontal(prefix, pl.min_horizontal("n", "before"))
    ranges = {
        "cached": (pl.lit(0, pl.Int64), pl.min_horizontal("kept", "hit")),
        "cached_by_others": (pl.col("kept"), pl.col("hit")),
        "kept_uncached": (pl.col("hit"), pl.col("kept")),
        "rewritten": (prefix, rewritten_end),
        "added": (rewritten_end, pl.col("n")),
        "dropped": (pl.col("n"), pl.col("before")),
    }
    parts = [
        ends.select(
            "request_index", "agent_id", state=pl.lit(state), from_block=start, to_block=end
        ).filter(pl.col("to_block") > pl.col("from_block"))
        for state, (start, end) in ranges.items()
    ]  # fmt: skip
    return pl.concat(parts).cast(RECTANGLES).sort("request_index", "from_block")  # type: ignore[arg-type]
