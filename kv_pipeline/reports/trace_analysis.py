"""What a set of trace files says about caching: a row per trace, curves of all, and what could not be read.

Each trace's row is that trace alone: one cache a model, shared by its main thread and sub-agents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from kv_pipeline.core.conversation_blocks import ConversationBlocks, conversation_reuse, fleet_reuse
from kv_pipeline.core.reuse import Reuse
from kv_pipeline.core.reuse_curves import ReuseFrames, lifetime_hits, reuse_frames, smallest_capacities
from kv_pipeline.core.simulate import LIFETIMES_S
from kv_pipeline.errors import InputError, Skip
from kv_pipeline.reports.analysis_options import Scope
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline.sources.trace_json.reader import Trace, read_trace

TRACE_ROWS: Final = pl.Schema(
    {
        "trace_id": pl.String(), "n_requests": pl.Int64(), "n_subagents": pl.Int64(), "models": pl.List(pl.String()),
        "duration_s": pl.Float64(), "prompt_tokens": pl.Int64(), "output_tokens": pl.Int64(),
        "block_references": pl.Int64(), "distinct_blocks": pl.Int64(), "hit_tokens_infinite": pl.Int64(),
        "hit_tokens_5m": pl.Int64(), "hit_tokens_1h": pl.Int64(), "shared_with_previous_blocks": pl.Int64(),
        "no_eviction_blocks": pl.Int64(), "lru_lossless_blocks": pl.Int64(), "belady_lossless_blocks": pl.Int64(),
    }
)  # fmt: skip


@dataclass(slots=True)
class TraceAnalysis:
    """The traces read so far.

    Attributes:
        scope: Who shares a cache in the curves.
        block_size: Tokens a block, None before the first trace.
        rows: Columns of `TRACE_ROWS`, a row per trace.
        reuses: Reuse of each trace alone.
        blocks: Blocks of each trace, kept for the fleet only.
        notices: What was left out or repaired.
    """

    scope: Scope
    block_size: int | None = None
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    reuses: list[Reuse] = field(default_factory=list)
    blocks: list[ConversationBlocks] = field(default_factory=list)
    notices: list[Skip] = field(default_factory=list)

    def add(self, trace: Trace) -> None:
        """Analyse one trace.

        Raises:
            InputError: Its block size is not that of the traces before.
        """
        size = trace.blocks.block_size
        if self.block_size not in (None, size):
            found = f"blocks of {size} tokens among traces with {self.block_size}"
            raise InputError("other_block_size", str(trace.source), found, "Analyse it in a run of its own.")
        self.block_size = size
        reuse = conversation_reuse(trace.blocks)
        self.notices += trace.notices()
        self.reuses.append(reuse)
        self.rows.append(_row(trace, reuse))
        if self.scope is Scope.FLEET:
            self.blocks.append(trace.blocks)

    def trace_rows(self) -> pl.DataFrame:
        """A row per trace, with its rates."""
        return _with_rates(pl.DataFrame(self.rows, schema=TRACE_ROWS, orient="row"))

    def total(self) -> dict[str, Any]:
        """The sums of all traces, and the rates of the sums."""
        rows = pl.DataFrame(self.rows, schema=TRACE_ROWS, orient="row")
        additive = [name for name in TRACE_ROWS if TRACE_ROWS[name] == pl.Int64 and not name.endswith("less_blocks")]
        sums = rows.select(pl.col(additive).exclude("no_eviction_blocks").sum())
        return {"n_traces": rows.height, **_with_rates(sums).row(0, named=True)}

    @property
    def has_clock(self) -> bool:
        """Whether all traces of a fleet say when they began; if not, they are taken to begin at once."""
        return all(blocks.starts_at_s is not None for blocks in self.blocks)

    def frames(self, kv_bytes_per_token: float | None) -> ReuseFrames:
        """Curves of all traces: each alone and added up, or with one cache a model for all."""
        groups = [fleet_reuse(self.blocks)] if self.scope is Scope.FLEET else self.reuses
        return reuse_frames(groups, kv_bytes_per_token)


def analyse_traces(
    files: Iterable[Path], scope: Scope, nested_times: NestedTimes, progress: Callable[[int], None]
) -> TraceAnalysis:
    """Read and analyse trace files one after the other; those that can't be used become notices.

    Args:
        files: The trace files.
        scope: Who shares a cache in the curves of all.
        nested_times: What `t` inside a sub-agent counts from.
        progress: Told of every file.
    """
    analysis = TraceAnalysis(scope)
    for path in files:
        try:
            analysis.add(read_trace(path, nested_times))
        except InputError as error:
            analysis.notices.append(Skip.of(error))
        progress(1)
    return analysis


def rate_distribution(rates: Sequence[float]) -> dict[str, float]:
    """Minimum, quartiles, maximum and mean, as published statistics of trace sets give them; empty without rates."""
    if not rates:
        return {}
    low, first, median, third, high = np.quantile(rates, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {"min": low, "p25": first, "median": median, "p75": third, "max": high, "mean": float(np.mean(rates))}


def _row(trace: Trace, reuse: Reuse) -> tuple[Any, ...]:
    blocks = trace.blocks
    hit_blocks = dict(zip(LIFETIMES_S, lifetime_hits(reuse, list(LIFETIMES_S.values())).tolist(), strict=True))
    return (
        blocks.conversation_id,
        len(blocks.models),
        trace.n_subagents,
        list(dict.fromkeys(blocks.models)),
        reuse.span_s,
        reuse.prompt_tokens,
        trace.output_tokens,
        reuse.n_references,
        reuse.n_distinct,
        *(hit_blocks[lifetime] * blocks.block_size for lifetime in ("infinite", "5m", "1h")),
        int(blocks.agent_shared_blocks.sum()),
        *smallest_capacities([reuse]),
    )


def _with_rates(rows: pl.DataFrame) -> pl.DataFrame:
    """Hit rates over prompt tokens, and the share of blocks that the agent's request before had; 0 without any."""
    hits = [name for name in rows.columns if name.startswith("hit_tokens_")]
    return rows.with_columns(
        *(
            (pl.col(name) / pl.col("prompt_tokens")).fill_nan(0.0).alias(name.replace("tokens", "rate"))
            for name in hits
        ),
        shared_with_previous_rate=(pl.col("shared_with_previous_blocks") / pl.col("block_references")).fill_nan(0.0),
    )
