"""Tables of what the API's cache was asked, what it gave, and why it gave less: one file a user."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.core.api_rules import LIFETIME_S
from kv_pipeline.core.causes import Cause
from kv_pipeline.core.scenarios import Scenario
from kv_pipeline.schemas.columns import UTC_TIME, at_least, column, one_of, table

SECTIONS: Final = ("model", "settings", "tools", "system", "messages")

_FACET: Final = pl.Struct({"name": pl.String(), "id": pl.UInt64()})

CONTENT_BLOCKS: Final = table(
    "content_blocks",
    "One row per content block of a segment: a tool, a system block, or a block of a message. Salted ids, no content.",
    unique=["database_id", "segment_index", "block_index"],
    columns={
        "database_id": column(pl.String(), "Database the segment was recorded in."),
        "segment_index": column(pl.UInt32(), "Number of the segment within its database."),
        "block_index": column(pl.UInt32(), "0-based place of the block in the segment."),
        "kind": column(pl.String(), "Tool, system block, billing header, or the type of a message's block."),
        "role": column(pl.String(), "Role of the block's message.", nullable=True),
        "content_id": column(pl.UInt64(), "Salted id of the block as sent, less what normalising removes."),
        "canonical_id": column(pl.UInt64(), "The same whatever the order of keys and the container."),
        "is_string": column(pl.Boolean(), "Whether the block is a plain string that stands for the whole list."),
        "is_reminder": column(pl.Boolean(), "Whether it is a reminder of the client."),
        "is_cleared": column(pl.Boolean(), "Whether it is a tool result whose content the client cleared."),
        "has_image": column(pl.Boolean(), "Whether it holds an image or document."),
        "tokens": column(pl.UInt32(), "Counted tokens, those estimated for payloads included."),
        "facets": column(pl.List(_FACET), "Salted ids of the parts whose change has a name of its own."),
    },
)

_TOKENS_NULL: Final = "; null if the answer has no usage."

CACHE_REPORT: Final = table(
    "cache_report",
    "One row per traced request of a user: what the API model predicts, what was billed, and why less was read.",
    unique=["conversation_id", "request_index"],
    columns={
        "conversation_id": column(pl.String(), "Conversation: user and session."),
        "request_index": column(pl.UInt32(), "0-based place of the request in the conversation."),
        "agent_id": column(pl.String(), "Agent that made the request; `main` is the main thread."),
        "model": column(pl.String(), "Model that answered."),
        "requested_at_utc": column(UTC_TIME, "Time of the request."),
        "n_breakpoints": column(pl.UInt32(), "cache_control markers of the request; automatic caching counts as one."),
        "uses_caching": column(pl.Boolean(), "Whether it asks for caching and is long enough for it."),
        "tools_tokens": column(pl.UInt32(), "Counted tokens of the tools."),
        "system_tokens": column(pl.UInt32(), "Counted tokens of the system prompt."),
        "messages_tokens": column(pl.UInt32(), "Counted tokens of the messages."),
        "predicted_read_tokens": column(pl.Int64(), "Predicted cache read tokens.", at_least(0)),
        "predicted_write_5m_tokens": column(pl.Int64(), "Predicted 5-minute cache write tokens.", at_least(0)),
        "predicted_write_1h_tokens": column(pl.Int64(), "Predicted 1-hour cache write tokens.", at_least(0)),
        "predicted_input_tokens": column(pl.Int64(), "Predicted uncached input tokens.", at_least(0)),
        "is_length_billed": column(pl.Boolean(), "Whether the predicted read's length is known from an earlier bill."),
        "billed_read_tokens": column(pl.Int64(), f"Billed cache read tokens{_TOKENS_NULL}", at_least(0), nullable=True),
        "billed_write_5m_tokens": column(
            pl.Int64(), f"Billed 5-minute cache write tokens{_TOKENS_NULL}", at_least(0), nullable=True
        ),
        "billed_write_1h_tokens": column(
            pl.Int64(), f"Billed 1-hour cache write tokens{_TOKENS_NULL}", at_least(0), nullable=True
        ),
        "billed_input_tokens": column(
            pl.Int64(), f"Billed uncached input tokens{_TOKENS_NULL}", at_least(0), nullable=True
        ),
        "output_tokens": column(pl.Int64(), "Billed tokens of the answer.", at_least(0)),
        "new_tokens": column(
            pl.Int64(), "Prompt tokens behind what the predecessor had cached: they had to be paid.", at_least(0)
        ),
        "lost_tokens": column(
            pl.Int64(), "Tokens that the predecessor had cached and that were not read (billed, else predicted).",
            at_least(0),
        ),
        "cause": column(pl.String(), "Why they were lost.", one_of([cause.value for cause in Cause])),
        "divergence": column(
            pl.String(), "What changed in content against the predecessor, whether or not it is the cause.",
            one_of([cause.value for cause in Cause]), nullable=True,
        ),
        "divergence_section": column(pl.String(), "Part of the request it lies in.", one_of(SECTIONS), nullable=True),
        "divergence_index": column(
            pl.UInt32(), "0-based tool, system block or message that differs first.", nullable=True
        ),
        "gap_s": column(pl.Float64(), "Seconds since the predecessor's request; null without one.", nullable=True),
        "lifetime": column(
            pl.String(), "Lifetime of the predecessor's last breakpoint.", one_of(list(LIFETIME_S)), nullable=True
        ),
        "has_billing_churn": column(
            pl.Boolean(), "Whether values of the billing header changed, which this cache ignores and others may not."
        ),
        "recorded_miss_reason": column(pl.String(), "The API's own diagnosis, where recorded.", nullable=True),
        "recorded_missed_tokens": column(pl.Int64(), "Tokens of that diagnosis.", at_least(0), nullable=True),
    },
)  # fmt: skip

WHAT_IF: Final = table(
    "what_if",
    "One row per traced request and scenario: what the API model predicts had the client sent it otherwise.",
    unique=["conversation_id", "request_index", "scenario"],
    columns={
        "conversation_id": column(pl.String(), "Conversation: user and session."),
        "request_index": column(pl.UInt32(), "0-based place of the request in the conversation."),
        "model": column(pl.String(), "Model that answered."),
        "scenario": column(pl.String(), "What is different.", one_of([scenario.value for scenario in Scenario])),
        "predicted_read_tokens": column(pl.Int64(), "Predicted cache read tokens.", at_least(0)),
        "predicted_write_5m_tokens": column(pl.Int64(), "Predicted 5-minute cache write tokens.", at_least(0)),
        "predicted_write_1h_tokens": column(pl.Int64(), "Predicted 1-hour cache write tokens.", at_least(0)),
        "predicted_input_tokens": column(pl.Int64(), "Predicted uncached input tokens.", at_least(0)),
    },
)
