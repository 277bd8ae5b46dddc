"""What is exported, wherever it came from: conversations, or the parts of them between two gaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl

from kv_pipeline.core.coarser import coarser_prompt
from kv_pipeline.core.paths import BlockIds, BlockNumbers, PrefixReferences, block_paths, prefix_references

Json = dict[str, Any]

MAIN_AGENT: Final = "main"


@dataclass(frozen=True, slots=True)
class Piece:
    """A conversation, or the part of it between two gaps.

    Attributes:
        conversation_id: The conversation, or the trace file's id.
        suffix: `_s1`, `_s2` … for parts.
        requests: TRACES with `tools_tokens` and `system_tokens`, in trace order; of trace files without times of day.
        agents: The conversation's AGENTS as dicts.
        block_size: Tokens a block.
        references: Its full blocks; equal ids are equal prefixes.
        tail_ids: Per request an id of the tokens behind its last full block; None if there are none, or if it is not
            known which other prompts end in the same ones.
        starts_at_s: What to add to `t_s` for the clock that conversations share; None if that is not known.
        has_own_ids: Whether ids mean nothing outside this conversation.
    """

    conversation_id: str
    suffix: str
    requests: pl.DataFrame
    agents: list[Json]
    block_size: int
    references: PrefixReferences
    tail_ids: Sequence[int | None]
    starts_at_s: float | None
    has_own_ids: bool

    def paths(self) -> Iterator[BlockIds]:
        """Per request the ids of its full blocks, one at a time."""
        refs = self.references
        numbers = block_paths(refs.prefix_requests.tolist(), refs.shared_blocks.tolist(), refs.n_new_blocks.tolist())
        return (refs.new_blocks[path] for path in numbers)


def coarser(piece: Piece, factor: int) -> Piece:
    """The same prompts in blocks of `factor` times the size."""
    if factor == 1:
        return piece
    tokens = piece.requests["input_tokens"].to_list()
    prompts = [
        coarser_prompt(path, tail, n_tokens, piece.block_size, factor)
        for path, tail, n_tokens in zip(piece.paths(), piece.tail_ids, tokens, strict=True)
    ]
    return replace(
        piece,
        block_size=piece.block_size * factor,
        references=prefix_references([path for path, _ in prompts]),
        tail_ids=[tail for _, tail in prompts],
    )


def main_thread_only(piece: Piece) -> Piece:
    """Without sub-agents; in a conversation without a main thread, the agent that spoke first is it."""
    agents = piece.requests["agent_id"]
    name = MAIN_AGENT if MAIN_AGENT in agents else str(agents[0])
    return _selected(piece, np.flatnonzero((agents == name).to_numpy()), piece.suffix)


def with_prompts(piece: Piece) -> Piece:
    """Without requests of no tokens; the piece itself if it has none."""
    has_prompt = (piece.requests["input_tokens"] > 0).to_numpy()
    return piece if has_prompt.all() else _selected(piece, np.flatnonzero(has_prompt), piece.suffix)


def split_at_gaps(piece: Piece, gap_s: float | None) -> list[Piece]:
    """Parts between stretches of more than `gap_s` in which no request was under way; each starts at t = 0."""
    if gap_s is None:
        return [piece]
    ended = (pl.col("t_s") + pl.col("api_time_s").fill_null(0.0)).cum_max().shift(1)
    is_first = (pl.col("t_s") - ended > gap_s).fill_null(value=False)
    parts = piece.requests.select(is_first.cum_sum()).to_series().to_numpy()
    n_parts = int(parts[-1]) + 1
    return [
        _rebased(_selected(piece, np.flatnonzero(parts == number), f"_s{number + 1}" if n_parts > 1 else ""))
        for number in range(n_parts)
    ]


def _selected(piece: Piece, rows: BlockNumbers, suffix: str) -> Piece:
    wanted = set(rows.tolist())
    return replace(
        piece,
        suffix=suffix,
        requests=piece.requests[rows],
        references=prefix_references([path for row, path in enumerate(piece.paths()) if row in wanted]),
        tail_ids=[piece.tail_ids[row] for row in rows],
    )


def _rebased(piece: Piece) -> Piece:
    start_s = float(piece.requests.select(pl.col("t_s").min()).item())
    starts_at_s = None if piece.starts_at_s is None else piece.starts_at_s + start_s
    return replace(piece, requests=piece.requests.with_columns(pl.col("t_s") - start_s), starts_at_s=starts_at_s)
