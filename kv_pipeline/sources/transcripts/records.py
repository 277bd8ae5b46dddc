"""The fields of transcript records that structure needs; everything else on a line is skipped, not parsed.

A field of an unexpected type counts as absent, and the rest of its record is used.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from kv_pipeline.sources.lenient import Count, decode_leniently, usable

_ABSENT: Final = msgspec.Raw(b"null")
AGENT_TOOLS: Final = ("Agent", "Task")
"""Tools that start a sub-agent: `Task` until client 2.0, `Agent` since."""


class Message(msgspec.Struct):
    """`message` of an assistant or user record."""

    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    content: msgspec.Raw = _ABSENT
    diagnostics: msgspec.Raw = _ABSENT


class CacheMiss(msgspec.Struct):
    """`cache_miss_reason` of a message's diagnostics: the API's own account of what it did not read."""

    type: str | None = None
    cache_missed_input_tokens: Count | None = None


class Diagnostics(msgspec.Struct):
    """`message.diagnostics` of an assistant record, of clients since 2.1.282."""

    cache_miss_reason: CacheMiss | None = None


class CompactMetadata(msgspec.Struct, rename="camel"):
    """`compactMetadata` of a compact_boundary record."""

    trigger: str | None = None
    pre_tokens: Count | None = None
    post_tokens: Count | None = None


class Record(msgspec.Struct, rename="camel"):
    """One line of a transcript."""

    type: str = ""
    subtype: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    is_sidechain: bool = False
    is_api_error_message: bool = False
    is_recovered: bool = False
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
    total_duration_ms: Count | None = None
    total_tokens: Count | None = None
    total_tool_use_count: Count | None = None


class AgentMeta(msgspec.Struct, rename="camel"):
    """`agent-<id>.meta.json` beside a sub-agent's transcript."""

    agent_type: str | None = None
    tool_use_id: str | None = None
    parent_agent_id: str | None = None
    is_fork: bool = False


class Decoded(NamedTuple):
    """A record, and whether a field had an unexpected type."""

    record: Record
    is_odd: bool


_record_decoder: Final = msgspec.json.Decoder(Record)
_blocks_decoder: Final = msgspec.json.Decoder(list[ContentBlock])


def decode_record(line: bytes) -> Decoded:
    """Read a line.

    Raises:
        msgspec.MsgspecError, RecursionError: It is not a JSON object.
    """
    try:
        return Decoded(_record_decoder.decode(line), is_odd=False)
    except msgspec.ValidationError:
        return Decoded(decode_leniently(line, Record), is_odd=True)


def decode_blocks(content: bytes) -> list[ContentBlock]:
    """The content blocks of a message; none if its content is a plain string."""
    try:
        return _blocks_decoder.decode(content)
    except msgspec.ValidationError:
        blocks = msgspec.json.decode(content)
        return (
            [usable(block, ContentBlock) for block in blocks if isinstance(block, dict)]
            if isinstance(blocks, list)
            else []
        )
