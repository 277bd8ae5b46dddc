"""Tables of the database partitions: raw_requests, segments, message_index, and what was skipped on the way."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.schemas.columns import UTC_TIME, at_least, column, one_of, table

OUTCOMES: Final = ("ok", "error", "aborted", "no_response")
TWIN_ROLES: Final = ("single", "streaming_twin", "replay_twin")
CLAUDE_CODE_PROXY: Final = "claude_code_proxy"
CLAUDE_TRACE: Final = "claude_trace"
HAR: Final = "har"
TRANSCRIPTS: Final = "transcripts"
RECORDERS: Final = (CLAUDE_CODE_PROXY, CLAUDE_TRACE, HAR, TRANSCRIPTS)
"""What records requests; a database here is the recording of any of them."""

MOST_EXACT_FIRST: Final = (CLAUDE_TRACE, HAR, CLAUDE_CODE_PROXY, TRANSCRIPTS)
"""By exactness of times and bodies: which recorder counts where several have as much of a conversation."""

RECORDED: Final = "recorded"
REBUILT: Final = "rebuilt"
APPROXIMATE: Final = "approximate"
EXACTNESS: Final = (RECORDED, REBUILT, APPROXIMATE)
"""How a request is known: its body was recorded; it was rebuilt from a transcript's records of requests and has the
digest noted there; or it was put together from a transcript's messages, with what is unseen as a stand-in."""

MISS_REASONS: Final = (
    "model_changed",
    "system_changed",
    "tools_changed",
    "messages_changed",
    "previous_message_not_found",
    "unavailable",
    "other",
)
"""The documented values of `diagnostics.cache_miss_reason.type`; `other` stands for any later one."""

CLIENT_TOOLS: Final = frozenset({
    "Agent", "AskUserQuestion", "Bash", "BashOutput", "Edit", "EnterPlanMode", "ExitPlanMode", "Glob", "Grep",
    "KillShell", "LS", "MultiEdit", "NotebookEdit", "NotebookRead", "Read", "Skill", "SlashCommand", "Task", "TodoRead",
    "TodoWrite", "WebFetch", "WebSearch", "Write",
})  # fmt: skip
"""Tools that every client has; names of others can tell whose they are. Source: code.claude.com, "Tools reference"."""

BREAKPOINT: Final = pl.Struct(
    {"section": pl.String(), "item_index": pl.Int32(), "block_index": pl.Int32(), "ttl": pl.String()}
)
PAYLOAD: Final = pl.Struct({"digest": pl.Binary(), "n_bytes": pl.Int64(), "estimated_tokens": pl.Int32()})

_EXACTNESS: Final = (
    "How the request is known: recorded, rebuilt from a transcript and verified by digest, or approximate: made of a "
    "transcript's messages, with stand-ins for what is unseen and breakpoints assumed."
)

RAW_REQUESTS: Final = table(
    "raw_requests",
    "One row per API request of a recording (a proxy's database, or a log), without content.",
    unique=["database_id", "row_id"],
    columns={
        "database_id": column(pl.String(), "Database the request was recorded in."),
        "row_id": column(
            pl.Int64(),
            "Row id within the database; of logs the line, of HAR files the entry, of transcripts a salted id.",
        ),
        "request_id": column(pl.String(), "Id that the recorder, or else the API, gave the request."),
        "requested_at_utc": column(UTC_TIME, "Time of the request, as exact as it was recorded."),
        "endpoint": column(pl.String(), "API path of the request."),
        "model": column(pl.String(), "Model the request asked for."),
        "routed_model": column(pl.String(), "Model the proxy sent it to.", nullable=True),
        "is_streaming": column(pl.Boolean(), "Whether the request asked for a streamed answer."),
        "status_code": column(pl.Int32(), "HTTP status of the answer.", nullable=True),
        "outcome": column(pl.String(), "How the request ended.", one_of(OUTCOMES)),
        "message_id": column(pl.String(), "Id of the answer's message.", nullable=True),
        "stop_reason": column(pl.String(), "Why the answer ended.", nullable=True),
        "output_types": column(pl.List(pl.String()), "Sorted distinct types of the answer's content blocks."),
        "answer_tools": column(
            pl.List(pl.String()),
            "Sorted distinct tools that the answer calls: the client's own by name, any other as `other`.",
        ),
        "input_tokens": column(pl.Int64(), "Billed uncached input tokens.", at_least(0), nullable=True),
        "output_tokens": column(pl.Int64(), "Billed output tokens.", at_least(0), nullable=True),
        "cache_read_tokens": column(pl.Int64(), "Billed cache read tokens.", at_least(0), nullable=True),
        "cache_write_5m_tokens": column(
            pl.Int64(), "Billed cache write tokens of 5 minutes lifetime.", at_least(0), nullable=True
        ),
        "cache_write_1h_tokens": column(
            pl.Int64(), "Billed cache write tokens of 1 hour lifetime.", at_least(0), nullable=True
        ),
        "api_time_s": column(pl.Float64(), "Seconds from request to end of the answer.", at_least(0), nullable=True),
        "ttft_s": column(pl.Float64(), "Seconds until the API began to answer.", at_least(0), nullable=True),
        "completed_at_utc": column(UTC_TIME, "Time the answer was complete.", nullable=True),
        "tools_segment": column(pl.UInt32(), "Segment of the tools; null if none were sent.", nullable=True),
        "system_segment": column(pl.UInt32(), "Segment of the system prompt; null if none.", nullable=True),
        "message_segments": column(pl.List(pl.UInt32()), "Segments of the messages, in order."),
        "breakpoints": column(
            pl.List(BREAKPOINT),
            "cache_control markers in prompt order: section, 0-based message (null elsewhere), 0-based tool, "
            "system or content block, and ttl (5m or 1h); section `request` is automatic caching.",
        ),
        "payload_bytes": column(pl.Int64(), "Bytes of request and answer as recorded.", at_least(0)),
        "content_id": column(pl.UInt64(), "Salted id of model, tools, system and messages; equal when they are."),
        "billing_header_id": column(
            pl.UInt64(), "Salted id of the billing header's changing values; null without one.", nullable=True
        ),
        "tool_choice_id": column(pl.UInt64(), "Salted id of `tool_choice`; null without one.", nullable=True),
        "thinking_id": column(
            pl.UInt64(), "Salted id of `thinking` and effort together; null without either.", nullable=True
        ),
        "speed_id": column(pl.UInt64(), "Salted id of `speed`; null without one.", nullable=True),
        "context_management_id": column(
            pl.UInt64(), "Salted id of `context_management`; null without one.", nullable=True
        ),
        "cache_miss_reason": column(
            pl.String(), "Why the API says that the cache was missed.", one_of(MISS_REASONS), nullable=True
        ),
        "cache_missed_input_tokens": column(
            pl.Int64(), "Tokens that the API says were missed.", at_least(0), nullable=True
        ),
        "has_applied_edits": column(
            pl.Boolean(), "Whether the API edited the context before it answered.", formerly=False
        ),
        "recorded_by": column(pl.String(), "What recorded the request.", one_of(RECORDERS), formerly=CLAUDE_CODE_PROXY),
        "session_id": column(
            pl.String(),
            "Session that the request names, in metadata or header; null if it names none.",
            nullable=True,
        ),
        "named_agent_id": column(
            pl.String(), "Sub-agent that the request's headers name; null if they name none.", nullable=True
        ),
        "exactness": column(pl.String(), _EXACTNESS, one_of(EXACTNESS), formerly=RECORDED),
        "row_digest": column(pl.UInt64(), "Salted id of all that this row says; changes when the row does."),
    },
)

SEGMENTS: Final = table(
    "segments",
    "One row per distinct tools, system or message segment of a database. The only table with content.",
    unique=["database_id", "segment_index"],
    columns={
        "database_id": column(pl.String(), "Database the segment was recorded in."),
        "segment_index": column(pl.UInt32(), "Number of the segment within its database, from 0."),
        "segment_id": column(pl.Binary(), "Salted 16-byte id of the normalised content, the same in any database."),
        "kind": column(pl.String(), "Which part of a request.", one_of(("tools", "system", "message"))),
        "role": column(pl.String(), "Role of a message.", nullable=True),
        "content_types": column(pl.List(pl.String()), "Sorted distinct content block types of a message."),
        "n_content_blocks": column(pl.UInt32(), "Tools, system blocks or content blocks in the segment."),
        "text": column(pl.String(), "Normalised JSON, ASCII; private.", nullable=True),
        "payloads": column(pl.List(PAYLOAD), "Base64 payloads taken out of the text: digest, size, estimate."),
    },
)

MESSAGE_INDEX: Final = table(
    "message_index",
    "One row per successful request of a database: its message id, and which request it repeats.",
    unique=["database_id", "row_id"],
    columns={
        "database_id": column(pl.String(), "Database the request was recorded in."),
        "row_id": column(
            pl.Int64(),
            "Row id within the database; of logs the line, of HAR files the entry, of transcripts a salted id.",
        ),
        "message_id": column(pl.String(), "Id of the answer's message.", nullable=True),
        "twin_role": column(pl.String(), "Single, or the streaming or replayed half of a turn.", one_of(TWIN_ROLES)),
        "billed_row_id": column(pl.Int64(), "Row of the request that came first and paid; itself if single."),
        "n_replays": column(pl.UInt32(), "How often the turn was replayed without streaming."),
    },
)

SKIPPED_INPUT: Final = table(
    "skipped_input",
    "One row per piece of input that was left out or repaired.",
    unique=[],
    columns={
        "source": column(pl.String(), "Id of the database or transcript in the landing folder."),
        "row": column(pl.Int64(), "Row id or 1-based line number; null for the whole file.", nullable=True),
        "reason": column(pl.String(), "Machine-readable reason."),
        "found": column(pl.String(), "What was found, without content."),
        "remedy": column(pl.String(), "What to do about it."),
        "is_left_out": column(pl.Boolean(), "False if the input was used all the same."),
    },
)
