"""What transcripts say, one set of files a user: kept, because clients delete transcripts after a while."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.schemas.columns import at_least, column, one_of, table
from kv_pipeline.schemas.requests import MISS_REASONS

LINKS: Final = ("main", "meta", "tool_result", "prompt", "none")

_SESSION = column(pl.String(), "Session of the client.")
_AGENT = column(pl.String(), "Agent; `main` is the main thread.")
_LINE = column(pl.Int64(), "1-based line of the transcript.", at_least(1))

TRANSCRIPT_ANSWERS: Final = table(
    "transcript_answers",
    "One row per (session, agent, message): where a transcript records an answer first.",
    unique=["session_id", "agent_id", "message_id"],
    columns={
        "session_id": _SESSION,
        "agent_id": _AGENT,
        "line": _LINE,
        "message_id": column(pl.String(), "Id of the answer's message."),
        "answered_at": column(pl.String(), "Time as the record gives it; empty if it has none."),
        "cache_miss_reason": column(
            pl.String(),
            "The API's own reason for what it did not read, where recorded.",
            one_of(MISS_REASONS),
            nullable=True,
        ),
        "cache_missed_input_tokens": column(pl.Int64(), "Tokens of that diagnosis.", at_least(0), nullable=True),
    },
)

TRANSCRIPT_AGENTS: Final = table(
    "transcript_agents",
    "One row per agent of a session, main threads included.",
    unique=["session_id", "agent_id"],
    columns={
        "session_id": _SESSION,
        "agent_id": _AGENT,
        "parent_agent_id": column(pl.String(), "Agent that started it; null for the main thread.", nullable=True),
        "subagent_type": column(pl.String(), "Type the caller or client gave it.", nullable=True),
        "link": column(pl.String(), "What ties it to its parent; none if no tool call names it.", one_of(LINKS)),
        "tool_use_id": column(pl.String(), "Tool call that started it.", nullable=True),
        "is_fork": column(pl.Boolean(), "Whether it continues its parent's context."),
        "depth": column(pl.UInt32(), "0 for the main thread, 1 for its sub-agents, and so on."),
        "status": column(pl.String(), "Status its caller saw.", nullable=True),
        "duration_ms": column(pl.Int64(), "Duration its caller saw, in milliseconds.", nullable=True),
        "total_tokens": column(pl.Int64(), "Tokens its caller saw.", nullable=True),
        "tool_use_count": column(pl.Int64(), "Tool calls its caller saw.", nullable=True),
    },
)

TRANSCRIPT_COMPACTIONS: Final = table(
    "transcript_compactions",
    "One row per compaction of an agent's context.",
    unique=["session_id", "agent_id", "line"],
    columns={
        "session_id": _SESSION,
        "agent_id": _AGENT,
        "line": _LINE,
        "compacted_at": column(pl.String(), "Time as the record gives it; empty if it has none."),
        "trigger": column(pl.String(), "manual or auto, as the client says.", nullable=True),
        "pre_tokens": column(pl.Int64(), "Tokens before, as the client counted them.", nullable=True),
        "post_tokens": column(pl.Int64(), "Tokens after, as the client counted them.", nullable=True),
    },
)
