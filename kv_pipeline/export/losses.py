"""What a format can't hold of a trace, counted by reason."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.export.options import ExportOptions, Format, Profile
from kv_pipeline.export.pieces import MAIN_AGENT, Piece

MODELS: Final = "requests whose model is not told"
LINKS: Final = "sub-agents whose parent is not told"
FACTS: Final = "sub-agents whose type and status are not told"
NESTING: Final = "nested sub-agents told as siblings"
ANSWER_TIMES: Final = "requests whose answer time is not told"
FIRST_TOKENS: Final = "requests whose time to first token is not told"
TYPES: Final = "requests whose content types and stop reason are not told"
OUTPUTS: Final = "requests whose output is not told"
TAILS: Final = "prompts whose partial last block is not numbered"
PRIVATE_TAILS: Final = "partial last blocks with a number of their own, as it is not known who shares them"
NO_OUTPUT: Final = "answers of no tokens told as 1"

_ROWS: Final = (MODELS, ANSWER_TIMES, FIRST_TOKENS, TYPES)
_NOT_HELD: Final[dict[Format, tuple[str, ...]]] = {
    Format.TRACE: (),
    Format.MOONCAKE: (*_ROWS, LINKS, FACTS, PRIVATE_TAILS),
    Format.AGENTIC_MOONCAKE: (FIRST_TOKENS, TYPES, FACTS, PRIVATE_TAILS, NO_OUTPUT),
    Format.BAILIAN: (*_ROWS, LINKS, FACTS, PRIVATE_TAILS),
    Format.ORACLE_GENERAL: (*_ROWS, LINKS, FACTS, OUTPUTS, TAILS),
    Format.PARQUET: (PRIVATE_TAILS,),
}


def losses(piece: Piece, options: ExportOptions) -> dict[str, int]:
    """Reason to number of requests or sub-agents that it is about; nothing that is not there.

    Args:
        piece: What is exported.
        options: With the format and, for trace JSON, the profile.
    """
    reasons = _NOT_HELD[options.format] + ((NESTING,) if options.profile is Profile.STRICT else ())
    counts = _counts(piece)
    return {reason: counts[reason] for reason in reasons if counts[reason]}


def _counts(piece: Piece) -> dict[str, int]:
    requests = piece.requests
    present = set(requests["agent_id"])
    below = [agent for agent in piece.agents if agent["agent_id"] in present and agent["agent_id"] != MAIN_AGENT]
    has_tail = (requests["input_tokens"] % piece.block_size != 0).to_list()
    tails = list(zip(has_tail, piece.tail_ids, strict=True))
    return {
        MODELS: requests.height if requests["model"].n_unique() > 1 else 0,
        LINKS: len(below),
        FACTS: len(below),
        NESTING: sum(agent["parent_agent_id"] in present - {MAIN_AGENT} for agent in below),
        ANSWER_TIMES: requests["api_time_s"].count(),
        FIRST_TOKENS: requests["ttft_s"].count(),
        TYPES: requests.height,
        OUTPUTS: requests.height,
        TAILS: sum(has_tail),
        PRIVATE_TAILS: sum(has and tail is None for has, tail in tails),
        NO_OUTPUT: requests.select((pl.col("output_tokens") == 0).sum()).item(),
    }
