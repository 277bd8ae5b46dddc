"""What a segment's content says of the structure of conversations, without keeping the content.

A message's *identity* is what it says, not how: a plain string is a list of one text, and reminders and thinking, which
clients move, add and drop from turn to turn, don't count. Identities are 8-byte digests, made anew each time and never
stored.

The client's own words that mark a fork, a compaction or a warm-up are used where they occur. Source: requests of
clients 2.0 to 2.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.core.normalise import BILLING_HEADER_PREFIX

AGENT_TOOLS: Final = ("Agent", "Task")
_REMINDER: Final = ("<system-reminder>", "</system-reminder>")
_THOUGHTS: Final = ("thinking", "redacted_thinking")
_FORK: Final = "<fork-boilerplate>"
_CONTINUED: Final = "This session is being continued from a previous conversation"
_SUMMARY: Final = "Your task is to create a detailed summary of the conversation so far"
_WARMUP: Final = "Warmup"
_IS_SUBAGENT: Final = "cc_is_subagent=true"

CALL: Final = pl.Struct({"tool_use_id": pl.String(), "prompt": pl.UInt64(), "subagent_type": pl.String()})
MESSAGE_FACTS: Final = pl.Schema(
    {
        "identity": pl.UInt64(),
        "n_characters": pl.UInt32(),
        "is_assistant": pl.Boolean(),
        "is_fork": pl.Boolean(),
        "is_warmup": pl.Boolean(),
        "is_continuation": pl.Boolean(),
        "asks_for_summary": pl.Boolean(),
        "texts": pl.List(pl.UInt64()),
        "results": pl.List(pl.String()),
        "calls": pl.List(CALL),
    }
)
"""One row per message: identity, length of its JSON, whose it is, marks, digests of a user's texts, ids of the tool
calls that it answers, and the calls of sub-agents that it makes."""


class HeadFacts(NamedTuple):
    """What tools or a system prompt say: identity without billing header, length, whether a sub-agent sent it."""

    identity: int
    n_characters: int
    is_subagent: bool


def message_facts(texts: Iterable[str]) -> pl.DataFrame:
    """Frame of `MESSAGE_FACTS`, one row per message, in order.

    Args:
        texts: Messages as JSON.
    """
    return pl.DataFrame([_message(text) for text in texts], schema=MESSAGE_FACTS, orient="row")


def head_facts(text: str) -> HeadFacts:
    """What a segment of tools or a system prompt says, given as JSON."""
    value = json.loads(text)
    blocks = value if isinstance(value, list) else [value]
    is_subagent = any(_IS_SUBAGENT in _billing_header(block) for block in blocks[:1])
    rest = [block for block in blocks if not _billing_header(block)]
    return HeadFacts(_digest(rest), len(text), is_subagent)


def _billing_header(block: object) -> str:
    text = block.get("text") if isinstance(block, Mapping) else block
    return text if isinstance(text, str) and text.startswith(BILLING_HEADER_PREFIX) else ""


def _message(text: str) -> tuple[object, ...]:
    value = json.loads(text)
    role = value.get("role") if isinstance(value, dict) else None
    blocks = _blocks(value.get("content") if isinstance(value, dict) else value)
    said = [one for block in blocks if isinstance(one := block.get("text"), str)]
    is_assistant = role == "assistant"
    return (
        _digest([role if isinstance(role, str) else None, [_bare(block) for block in blocks]]),
        len(text),
        is_assistant,
        any(_FORK in one for one in said),
        said == [_WARMUP],
        any(one.startswith(_CONTINUED) for one in said),
        any(_SUMMARY in one for one in said),
        [] if is_assistant else [_digest(one) for one in said],
        [one for block in blocks if isinstance(one := block.get("tool_use_id"), str)],
        list(_calls(blocks)) if is_assistant else [],
    )


def _blocks(content: object) -> Sequence[Mapping[str, Any]]:
    """Content blocks less reminders and thinking; anything that is no list of blocks is one block."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    blocks = content if isinstance(content, list) else [content]
    return [block for block in map(_as_block, blocks) if not _is_passing(block)]


def _as_block(block: object) -> Mapping[str, Any]:
    return block if isinstance(block, dict) else {"type": "text", "text": block}


def _is_passing(block: Mapping[str, Any]) -> bool:
    text = block.get("text")
    is_reminder = (
        isinstance(text, str) and text.lstrip().startswith(_REMINDER[0]) and text.rstrip().endswith(_REMINDER[1])
    )
    return is_reminder or block.get("type") in _THOUGHTS


def _bare(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """A result that is a plain string says what a list of that text says."""
    content = block.get("content")
    return {**block, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else block


def _calls(blocks: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for block in blocks:
        given, tool_use_id = block.get("input"), block.get("id")
        if block.get("name") not in AGENT_TOOLS or not isinstance(given, dict) or not isinstance(tool_use_id, str):
            continue
        prompt, kind = given.get("prompt"), given.get("subagent_type")
        yield {
            "tool_use_id": tool_use_id,
            "prompt": _digest(prompt),
            "subagent_type": kind if isinstance(kind, str) else None,
        }


def _digest(value: object) -> int:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
