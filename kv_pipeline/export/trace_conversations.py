"""Conversations of trace files: published traces, and our own exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from kv_pipeline.core.paths import BlockIds, chained_ids, prefix_references
from kv_pipeline.errors import InputError, Skip, UsageError
from kv_pipeline.export.options import OWN_BLOCK_SIZES, ExportOptions, Format
from kv_pipeline.export.pieces import Json, Piece, coarser
from kv_pipeline.export.sources import Loaded
from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline.sources.trace_json.whole import ROW_SCHEMA, WholeTrace, read_whole

_ONE_BLOCK_SIZE: Final = (Format.MOONCAKE, Format.BAILIAN, Format.AGENTIC_MOONCAKE)
"""Formats in which all traces of a file have blocks of one size."""
_EARLIEST: Final = 0.0


class TraceConversations:
    """The traces of files.

    Blocks can be made larger, by a whole factor, never smaller. A format's own block size that can't be had gives way
    to that of the files; one that was asked for does not.

    Args:
        files: Trace files.
        options: With the format and the block size that was asked for.
        nested_times: What `t` inside sub-agents counts from.
        wanted: Only these: names of files without `.json`; all if None.

    Raises:
        UsageError: A trace does not exist.
    """

    def __init__(
        self,
        files: Sequence[Path],
        options: ExportOptions,
        nested_times: NestedTimes = NestedTimes.AUTO,
        wanted: Sequence[str] | None = None,
    ) -> None:
        self._options, self._nested_times = options, nested_times
        known = {str(path): path for path in files}
        missing = [name for name in wanted or () if name not in {path.stem for path in files}]
        if missing:
            raise UsageError(f"There is no trace {missing[0]!r} in what --from-traces names.")
        self._files = {name: path for name, path in known.items() if wanted is None or path.stem in wanted}
        self._block_size = options.block_size
        self._starts_s: dict[str, float | None] = {}

    @property
    def names(self) -> Sequence[str]:
        """The files."""
        return list(self._files)

    def starts_at_s(self, name: str) -> float | None:
        """Unix time of t = 0, if requests carry times of day; such files are read twice."""
        try:
            return self._read(name).starts_at_s
        except InputError:
            return _EARLIEST  # whatever is wrong with it is told when it is loaded

    def load(self, name: str) -> Loaded:
        """One trace.

        Raises:
            InputError: It is no trace, or can't be had in blocks of the wanted size.
        """
        trace = self._read(name)
        wanted = self._wanted_block_size(trace.block_size)
        if wanted % trace.block_size:
            found = f"blocks of {wanted} tokens can't be made of its blocks of {trace.block_size}"
            raise InputError("other_block_size", name, found, f"Use a multiple: --block-size {trace.block_size}.")
        piece, is_chained = _piece(trace)
        notices = [] if is_chained else [_note(name, "unchained_ids", "an id stands behind different blocks", "")]
        if self._options.block_size is None and OWN_BLOCK_SIZES.get(self._options.format, wanted) != wanted:
            found = f"its blocks of {trace.block_size} tokens can't be made into {self._options.format}'s own"
            notices.append(_note(name, "own_block_size", found, f"Tell readers that blocks have {wanted} tokens."))
        if trace.n_surplus_ids:
            notices.append(_note(name, "surplus_ids", f"{trace.n_surplus_ids} ids of blocks that are not full", ""))
        return Loaded(coarser(piece, wanted // trace.block_size), notices)

    def analysis(self, piece: Piece, options: ExportOptions) -> Json | None:  # noqa: ARG002
        """Nothing is known but what the files say."""
        return None

    def _read(self, name: str) -> WholeTrace:
        return read_whole(self._files[name], self._nested_times)

    def _wanted_block_size(self, own: int) -> int:
        """In formats of one size the first file decides, unless one was asked for."""
        if self._block_size is not None:
            return self._block_size
        usual = OWN_BLOCK_SIZES.get(self._options.format, own)
        wanted = own if usual % own else usual
        if self._options.format in _ONE_BLOCK_SIZE:
            self._block_size = wanted
        return wanted


def _note(name: str, reason: str, found: str, remedy: str) -> Skip:
    return Skip(name, None, reason, found, remedy or "None needed.", is_left_out=False)


def _piece(trace: WholeTrace) -> tuple[Piece, bool]:
    """The trace, and whether equal ids meant equal prefixes."""
    paths: Sequence[BlockIds] = trace.paths
    is_chained = True
    try:
        references = prefix_references(paths)
    except ValueError:
        is_chained = False
        references = prefix_references(chained_ids(paths))
    piece = Piece(
        conversation_id=trace.trace_id,
        suffix="",
        requests=_rows(trace),
        agents=trace.agents,
        block_size=trace.block_size,
        references=references,
        tail_ids=[None] * len(paths),
        starts_at_s=trace.starts_at_s,
        has_own_ids=trace.has_own_ids or not is_chained,
    )
    return piece, is_chained


def _rows(trace: WholeTrace) -> pl.DataFrame:
    """TRACES with section tokens; what trace files don't say is worked out from what they say."""
    schema = polars_schema(TRACES)
    agent_index = pl.int_range(pl.len(), dtype=pl.UInt32).over("agent_id")
    starts_turn = ~pl.col("input_types").list.contains("tool_result") | (agent_index == 0)
    previous_end_s = (pl.col("t_s") + pl.col("api_time_s").fill_null(0.0)).shift(1).over("agent_id")
    gap_s = (pl.col("t_s") - previous_end_s).clip(lower_bound=0.0).fill_null(0.0)
    since_start = pl.duration(microseconds=(pl.col("t_s") * 1e6).round())
    start = None if trace.starts_at_s is None else round(trace.starts_at_s * 1e6)
    return pl.DataFrame(trace.rows, schema=ROW_SCHEMA, orient="row").select(
        conversation_id=pl.lit(trace.trace_id),
        request_index=pl.int_range(pl.len(), dtype=pl.UInt32),
        agent_id="agent_id",
        agent_request_index=agent_index,
        turn_index=(starts_turn.cum_sum().over("agent_id") - 1).cast(pl.UInt32),
        requested_at_utc=pl.lit(start, pl.Int64).cast(schema["requested_at_utc"]) + since_start,
        t_s="t_s",
        type="type",
        model="model",
        input_tokens="input_tokens",
        output_tokens="output_tokens",
        input_types="input_types",
        output_types="output_types",
        stop_reason="stop_reason",
        api_time_s="api_time_s",
        ttft_s="ttft_s",
        think_time_s=pl.coalesce("think_time_s", gap_s),
        is_after_compaction=pl.lit(value=False),
        estimated_tokens=pl.lit(0, pl.UInt32),
        tools_tokens="tools_tokens",
        system_tokens="system_tokens",
    )
