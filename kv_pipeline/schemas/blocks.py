"""Tables of the conversation partitions: tokenized_blocks, traces, validation_report; and the fleet roll-up."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.core.simulate import LIFETIMES_S
from kv_pipeline.schemas.columns import UTC_TIME, at_least, column, one_of, table

CONVERSATION_SCOPES: Final = ("agent", "conversation")
"""Cache scopes that one conversation's requests decide, so they live in its partition."""
FLEET_SCOPES: Final = ("user", "fleet")
"""Cache scopes that other conversations' requests have a part in, so they live in the roll-up."""

_CONVERSATION = column(pl.String(), "Conversation: user and session.")
_REQUEST_INDEX = column(pl.UInt32(), "0-based place of the request in the conversation.")
_AGENT = column(pl.String(), "Agent that made the request; `main` is the main thread.")
_MODEL = column(pl.String(), "Model that answered.")

TOKENIZED_BLOCKS: Final = table(
    "tokenized_blocks",
    "One row per request of a conversation: token counts, and the blocks that no earlier request of it had.",
    unique=["conversation_id", "request_index"],
    columns={
        "conversation_id": _CONVERSATION,
        "request_index": _REQUEST_INDEX,
        "agent_id": _AGENT,
        "model": _MODEL,
        "requested_at_utc": column(UTC_TIME, "Time of the request."),
        "tools_tokens": column(pl.UInt32(), "Tokens of the tools section."),
        "system_tokens": column(pl.UInt32(), "Tokens of the system section."),
        "messages_tokens": column(pl.UInt32(), "Tokens of the messages section."),
        "estimated_tokens": column(pl.UInt32(), "Of these, tokens estimated for images and documents."),
        "n_blocks": column(pl.UInt32(), "Full blocks of the whole prompt."),
        "prefix_request_index": column(
            pl.Int64(), "Earlier request with the longest shared prefix, -1 if none.", at_least(-1)
        ),
        "shared_blocks": column(pl.UInt32(), "Blocks shared with that request."),
        "agent_shared_blocks": column(pl.UInt32(), "Blocks shared with the agent's request before."),
        "new_block_hashes": column(pl.List(pl.UInt64()), "Chained hashes of the remaining blocks."),
        "tail_hash": column(
            pl.UInt64(),
            "Chained hash of the tokens behind the last full block; null if there are none, or in older tables.",
            nullable=True,
        ),
    },
)

TRACES: Final = table(
    "traces",
    "One row per request of a conversation in trace order.",
    unique=["conversation_id", "request_index"],
    columns={
        "conversation_id": _CONVERSATION,
        "request_index": _REQUEST_INDEX,
        "agent_id": _AGENT,
        "agent_request_index": column(pl.UInt32(), "0-based place among the agent's requests."),
        "turn_index": column(pl.UInt32(), "0-based turn of the agent."),
        "requested_at_utc": column(UTC_TIME, "Time of the request."),
        "t_s": column(pl.Float64(), "Seconds since the conversation's first request.", at_least(0)),
        "type": column(pl.String(), "s for a streamed request, n for one that was not.", one_of(("s", "n"))),
        "model": _MODEL,
        "input_tokens": column(pl.UInt32(), "Counted tokens of the prompt."),
        "output_tokens": column(pl.Int64(), "Billed tokens of the answer.", at_least(0)),
        "input_types": column(pl.List(pl.String()), "Content types that were new in the request."),
        "output_types": column(pl.List(pl.String()), "Content types of the answer."),
        "stop_reason": column(pl.String(), "Why the answer ended; empty if it did not say."),
        "api_time_s": column(pl.Float64(), "Seconds from request to end of the answer.", at_least(0), nullable=True),
        "ttft_s": column(pl.Float64(), "Seconds until a streamed answer began.", at_least(0), nullable=True),
        "think_time_s": column(
            pl.Float64(), "Seconds from the agent's answer before to the request, at least 0.", at_least(0)
        ),
        "is_after_compaction": column(pl.Boolean(), "Whether the agent's context was compacted just before."),
        "estimated_tokens": column(pl.UInt32(), "Of the input, tokens estimated for images and documents."),
    },
)

_LIFETIME = column(pl.String(), "Simulated lifetime of a block from its last use.", one_of(list(LIFETIMES_S)))
_BILLED_PROMPT = "Billed input + cache read + cache write tokens; null if the answer has no usage."

VALIDATION_REPORT: Final = table(
    "validation_report",
    "One row per request, scope and lifetime: what the blocks model predicts, beside what was billed.",
    unique=["conversation_id", "request_index", "scope", "lifetime"],
    columns={
        "conversation_id": _CONVERSATION,
        "request_index": _REQUEST_INDEX,
        "agent_id": _AGENT,
        "model": _MODEL,
        "scope": column(pl.String(), "Who shares the simulated cache.", one_of(CONVERSATION_SCOPES)),
        "lifetime": _LIFETIME,
        "prompt_tokens": column(pl.UInt32(), "Counted tokens of the prompt."),
        "hit_blocks": column(pl.UInt32(), "Predicted hit blocks."),
        "hit_tokens": column(pl.UInt32(), "Tokens of the predicted hit blocks."),
        "billed_prompt_tokens": column(pl.Int64(), _BILLED_PROMPT, at_least(0), nullable=True),
        "billed_read_tokens": column(pl.Int64(), "Billed cache read tokens.", at_least(0), nullable=True),
    },
)

VALIDATION_SUMMARY: Final = table(
    "validation_summary",
    "One row per conversation, model, scope and lifetime: sums over the requests that were billed.",
    unique=["conversation_id", "model", "scope", "lifetime"],
    columns={
        "conversation_id": _CONVERSATION,
        "model": _MODEL,
        "scope": column(pl.String(), "Who shares the simulated cache.", one_of(CONVERSATION_SCOPES + FLEET_SCOPES)),
        "lifetime": _LIFETIME,
        "n_requests": column(pl.UInt32(), "Billed requests."),
        "prompt_tokens": column(pl.Int64(), "Their counted prompt tokens."),
        "hit_tokens": column(pl.Int64(), "Their predicted hit tokens."),
        "billed_prompt_tokens": column(pl.Int64(), "Their billed prompt tokens."),
        "billed_read_tokens": column(pl.Int64(), "Their billed cache read tokens."),
        "n_within_one_block": column(
            pl.UInt32(),
            "Requests whose billed read is predicted within one block, after scaling to billed tokens.",
        ),
    },
)
