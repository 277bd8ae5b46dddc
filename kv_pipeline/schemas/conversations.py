"""Tables of conversation_index: one set of files a user."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.schemas.columns import UTC_TIME, at_least, column, one_of, table
from kv_pipeline.schemas.transcripts import TRANSCRIPT_AGENTS

UNINDEXED_REASONS: Final = ("failed_attempt", "retry", "replay_twin", "side_request", "duplicate", "unknown")
STRUCTURES: Final = ("transcripts", "content")

CONVERSATION_REQUESTS: Final = table(
    "conversation_requests",
    "One row per traced request: its place in conversation and agent.",
    unique=["conversation_id", "request_index"],
    columns={
        "conversation_id": column(pl.String(), "Conversation: user and session."),
        "request_index": column(pl.UInt32(), "0-based place in the conversation by time, messages, row id."),
        "agent_id": column(pl.String(), "Agent that made the request; `main` is the main thread."),
        "agent_request_index": column(pl.UInt32(), "0-based place among the agent's requests."),
        "turn_index": column(pl.UInt32(), "0-based turn of the agent; tool results continue a turn."),
        "database_id": column(pl.String(), "Database that recorded the request."),
        "billed_row_id": column(pl.Int64(), "Row that came first and paid: the streaming twin if there are two."),
        "answer_row_id": column(pl.Int64(), "Row whose answer the transcript names; without one the billed row."),
        "message_id": column(pl.String(), "Id of that answer's message."),
        "requested_at_utc": column(UTC_TIME, "Time of the billed row."),
        "n_replays": column(pl.UInt32(), "How often the turn was replayed without streaming."),
        "is_after_compaction": column(pl.Boolean(), "Whether the agent's context was compacted just before."),
    },
)

AGENTS: Final = table(
    "agents",
    "One row per agent of a conversation.",
    unique=["conversation_id", "agent_id"],
    columns={
        "conversation_id": column(pl.String(), "Conversation: user and session."),
        **{name: facts for name, facts in TRANSCRIPT_AGENTS.columns.items() if name != "session_id"},
        "n_requests": column(pl.UInt32(), "Its requests."),
    },
)

UNINDEXED_REQUESTS: Final = table(
    "unindexed_requests",
    "One row per recorded request that is in no trace, with the reason.",
    unique=["database_id", "row_id"],
    columns={
        "database_id": column(pl.String(), "Database that recorded the request."),
        "row_id": column(
            pl.Int64(),
            "Row id within the database; of logs the line, of HAR files the entry, of transcripts a salted id.",
        ),
        "requested_at_utc": column(UTC_TIME, "Time of the request."),
        "reason": column(pl.String(), "Why it is in no conversation.", one_of(UNINDEXED_REASONS)),
        "conversation_id": column(pl.String(), "Conversation it belongs to by its content.", nullable=True),
    },
)

CONVERSATIONS: Final = table(
    "conversations",
    "One row per conversation that transcripts record, or that was recovered from content.",
    unique=["conversation_id"],
    columns={
        "conversation_id": column(pl.String(), "Conversation: user and session."),
        "user_id": column(pl.String(), "User whose landing folder it came from."),
        "session_id": column(pl.String(), "Session of the client."),
        "structure": column(
            pl.String(),
            "Where conversation and agents are known from: transcripts, or requests' content.",
            one_of(STRUCTURES),
            formerly="transcripts",
        ),
        "n_requests": column(pl.UInt32(), "Traced requests, sub-agents included."),
        "n_rebuilt": column(
            pl.UInt32(), "Of these, requests rebuilt from transcripts and verified by digest.", formerly=0
        ),
        "n_approximate": column(
            pl.UInt32(), "Of these, requests put together from transcripts, with stand-ins for the unseen.", formerly=0
        ),
        "n_agents": column(pl.UInt32(), "Agents with requests, the main thread included."),
        "n_compactions": column(pl.UInt32(), "Times the context was compacted."),
        "n_transcript_answers": column(pl.UInt32(), "Distinct answers in its transcripts; 0 without transcripts."),
        "match_rate": column(
            pl.Float64(),
            "Share of those answers whose requests are known, 0 to 1; null without.",
            at_least(0),
            nullable=True,
        ),
        "first_request_at_utc": column(UTC_TIME, "Time of the first request.", nullable=True),
        "last_request_at_utc": column(UTC_TIME, "Time of the last request.", nullable=True),
        "models": column(pl.List(pl.String()), "Sorted distinct models of its requests."),
        "marked_lifetime": column(
            pl.String(),
            "Longest cache lifetime that its markers ask for.",
            one_of(("5m", "1h")),
            nullable=True,
        ),
        "fingerprint": column(pl.String(), "Changes when anything that its partitions are made of does."),
    },
)
