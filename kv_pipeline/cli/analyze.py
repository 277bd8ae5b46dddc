"""`kv-pipeline analyze`: trace files in, tables or JSON out. Nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import polars as pl

from kv_pipeline import progress
from kv_pipeline.cli.display import console, print_file_notices, print_json, print_table, showing_progress
from kv_pipeline.core.reuse_curves import ReuseFrames, reuse_frames
from kv_pipeline.errors import Skip
from kv_pipeline.reports.analysis_options import AnalysisOptions, Scope
from kv_pipeline.reports.trace_analysis import TraceAnalysis, analyse_traces, rate_distribution
from kv_pipeline.sources.trace_json.reader import trace_files

JSON_FORMAT: Final = "kv_pipeline.analysis/1"
_DEFINITION: Final = (
    "Blocks model: a request hits the longest prefix of its full blocks that the cache still holds. hit rate = hit "
    "tokens / prompt tokens. Models never share a cache; a capacity is that of each cache. LRU evicts the leaf end of "
    "the longest unused prompt first; Belady is the most that any policy can hit."
)
_TRACE_COLUMNS: Final = [
    ("trace_id", "trace"), ("n_requests", "requests"), ("n_subagents", "sub-agents"), ("prompt_tokens", "tokens"),
    ("block_references", "blocks used"), ("distinct_blocks", "distinct"), ("hit_rate_infinite", "infinite"),
    ("hit_rate_1h", "1h"), ("hit_rate_5m", "5m"), ("shared_with_previous_rate", "as previous"),
    ("lru_lossless_blocks", "LRU needs"), ("no_eviction_blocks", "no eviction"),
]  # fmt: skip
_TTL_COLUMNS: Final = [
    ("lifetime", "lifetime"), ("hit_rate", "hit rate"), ("hit_tokens", "hit tokens"),
    ("prefill_blocks", "blocks computed"), ("mean_resident_blocks", "mean blocks held"),
]  # fmt: skip
_CAPACITY_COLUMNS: Final = [
    ("capacity_blocks", "blocks"), ("capacity_tokens", "tokens"), ("capacity_gb", "GB"), ("lru_hit_rate", "LRU"),
    ("belady_hit_rate", "Belady"),
]  # fmt: skip
_WINDOW_COLUMNS: Final = [("window", "window"), ("mean_blocks", "mean blocks"), ("max_blocks", "most blocks")]


def analyze_command(paths: list[Path], options: AnalysisOptions, *, as_json: bool) -> bool:
    """Analyse trace files and print the result.

    Returns:
        Whether some file was left out.
    """
    kv_name, bytes_per_token = options.kv()
    files = trace_files(paths)
    with showing_progress():
        advance = progress.counter("traces", len(files))
        analysis = analyse_traces(files, options.scope, options.nested_times, advance)
    frames = analysis.frames(bytes_per_token)
    if as_json:
        print_json(_document(analysis, frames, options))
    else:
        _print(analysis, frames, kv_name, options.limit)
    return any(notice.is_left_out for notice in analysis.notices)


def _print(analysis: TraceAnalysis, frames: ReuseFrames, kv_name: str | None, limit: int | None) -> None:
    rows = analysis.trace_rows()
    shown = rows if limit is None else rows.head(limit)
    print_table(f"{rows.height} traces, each alone", shown, _TRACE_COLUMNS, caption=_DEFINITION)
    where = _where(analysis)
    whole = pl.col("mean_resident_blocks").round().cast(pl.Int64)
    print_table(f"Lifetimes ({where})", frames.ttl_curve.with_columns(whole), _TTL_COLUMNS)
    title = f"Capacities ({where}; GB of KV cache of {kv_name or 'the model given'})"
    print_table(title, frames.capacity_curve, _CAPACITY_COLUMNS)
    windows = frames.working_set_summary.with_columns(
        pl.col("mean_blocks").round().cast(pl.Int64), window=pl.format("{} min", pl.col("window_s") // 60)
    )
    print_table(f"Working set ({where})", windows, _WINDOW_COLUMNS)
    _print_summary(analysis, frames)


def _where(analysis: TraceAnalysis) -> str:
    if analysis.scope is Scope.CONVERSATION:
        return "each trace alone, added up"
    return "all traces share" if analysis.has_clock else "all traces share, as if all began at once"


def _print_summary(analysis: TraceAnalysis, frames: ReuseFrames) -> None:
    total, smallest, out = analysis.total(), frames.smallest_capacities, console()
    out.print(
        f"{total['n_traces']:,} traces, {total['n_requests']:,} requests, {total['n_subagents']:,} sub-agents, "
        f"{total['prompt_tokens']:,} prompt tokens, {total['block_references']:,} blocks of "
        f"{analysis.block_size} tokens."
    )
    out.print(
        f"A cache that loses no hit needs {smallest.belady_lossless_blocks:,} blocks at best, "
        f"{smallest.lru_lossless_blocks:,} with LRU; LRU never evicts from {smallest.no_eviction_blocks:,}."
    )
    shares = rate_distribution(analysis.trace_rows()["shared_with_previous_rate"].to_list())
    if shares:
        text = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        out.print(f"Blocks shared with the agent's request before, by trace: {text}.")
    print_file_notices(analysis.notices)


def _document(analysis: TraceAnalysis, frames: ReuseFrames, options: AnalysisOptions) -> dict[str, Any]:
    """The JSON document; docs/cache-model.md describes it."""
    kv_name, bytes_per_token = options.kv()
    rows = analysis.trace_rows()
    n_shown = rows.head(options.limit or rows.height).height
    traces = [
        row | _curves(reuse_frames([reuse], bytes_per_token))
        for row, reuse in zip(rows.head(n_shown).to_dicts(), analysis.reuses[:n_shown], strict=True)
    ]
    return {
        "format": JSON_FORMAT,
        "definition": _DEFINITION,
        "scope": analysis.scope.value,
        "has_clock": analysis.has_clock if analysis.scope is Scope.FLEET else None,
        "block_size": analysis.block_size,
        "kv_model": kv_name,
        "kv_bytes_per_token": bytes_per_token,
        "total": analysis.total() | _curves(frames) | {"working_set": frames.working_set.to_dicts()},
        "shared_with_previous": rate_distribution(rows["shared_with_previous_rate"].to_list()),
        "traces": traces,
        "notices": [_notice(notice) for notice in analysis.notices],
    }


def _curves(frames: ReuseFrames) -> dict[str, Any]:
    finite = pl.when(pl.col("lifetime_s").is_finite()).then("lifetime_s")  # JSON has no infinity
    return {
        "ttl_curve": frames.ttl_curve.with_columns(finite).to_dicts(),
        "capacity_curve": frames.capacity_curve.to_dicts(),
        "smallest_capacities": frames.smallest_capacities._asdict(),
        "working_set_summary": frames.working_set_summary.to_dicts(),
        "block_prefills": frames.block_prefills.to_dicts(),
    }


def _notice(notice: Skip) -> dict[str, Any]:
    return {name: getattr(notice, name) for name in ("source", "reason", "found", "remedy", "is_left_out")}
