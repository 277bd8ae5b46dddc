"""The fields of transcript records that structure needs; everything else on a line is skipped, not parsed."""

from __future__ import annotations

from typing import Final

import msgspec

_ABSENT: Final = msgspec.Raw(b"null")
AGENT_TOOLS: Final = ("Agent", "Task")
"""Tools that start a sub-agent: `Task` until client 2.0, `Agent` since."""


class Message(msgspec.Struct):
    """`message` of an assistant or user record."""

    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    content: msgspec.Raw = _ABSENT


class CompactMetadata(msgspec.Struct, rename="camel"):
    """`compactMetadata` of a compact_boundary record."""

    trigger: str | None = None
    pre_tokens: int | None = None
    post_tokens: int | None = None


class Record(msgspec.Struct, rename="camel"):
    """One line of a transcript."""

    type: str = ""
    subtype: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    is_sidechain: bool = False
    is_api_error_message: bool = False
    timestamp: str | None = None
    uuid: str | None = None
    parent_uuid: str | None = None
    message: Message | None = None
    compact_metadata: CompactMetadata | None = None
    tool_use_result: msgspec.Raw = _ABSENT


class ContentBlock(msgspec.Struct):
    """A content block of a message, as far as sub-agents need it."""

    type: str = ""
    id: str | None = None
    name: str | None = None
    tool_use_id: str | None = None
    input: msgspec.Raw = _ABSENT


class AgentInput(msgspec.Struct):
    """`input` of an Agent or Task tool call."""

    subagent_type: str | None = None


class AgentResult(msgspec.Struct, rename="camel"):
    """`toolUseResult` of a finished or launched sub-agent."""

    agent_id: str | None = None
    agent_type: str | None = None
    status: str | None = None
    total_duration_ms: int | None = None
    total_tokens: int | None = None
    total_tool_use_count: int | None = None


class AgentMeta(msgspec.Struct, rename="camel"):
    """`agent-<id>.meta.json` beside a sub-agent's transcript."""

    agent_type: str | None = None
    tool_use_id: str | None = None
    parent_agent_id: str | None = None
    is_fork: bool = False


record_decoder: Final = msgspec.json.Decoder(Record)
blocks_decoder: Final = msgspec.json.Decoder(list[ContentBlock])
input_decoder: Final = msgspec.json.Decoder(AgentInput)
result_decoder: Final = msgspec.json.Decoder(AgentResult)
meta_decoder: Final = msgspec.json.Decoder(AgentMeta)
