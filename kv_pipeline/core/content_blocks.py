"""Content blocks: the units in which the API's cache sees a prompt. A tool, a system block, or a block of a message.

Breakpoints sit on content blocks and look-back counts them, so the *API* model needs each block's identity, its counted
tokens, and what a later change of it would be called. All identities are salted; nothing here can be read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from kv_pipeline.core.hashing import salted_u64
from kv_pipeline.core.json_text import serialise
from kv_pipeline.core.normalise import BILLING_HEADER_PREFIX, SegmentKind, type_name

TOOL: Final = "tool"
DEFERRED_TOOL: Final = "deferred_tool"
"""A tool that stays outside of the prompt until the model asks for it (`defer_loading`)."""
SYSTEM: Final = "system"
BILLING_HEADER: Final = "billing_header"
"""The system block that clients since 2.1.36 put first."""
OTHER: Final = "other"
"""A block whose type is missing or no text."""
WITHOUT_REMINDERS: Final = "without_reminders"
"""Facet of a block with reminders folded into it: the `content_id` that it would have without them."""
THINKING: Final = ("thinking", "redacted_thinking")

_REMINDER: Final = "<system-reminder>"
# Works on plain text and on JSON text, where a line break is written as two characters.
_REMINDERS: Final = re.compile(r"(?:\s|\\n)*<system-reminder>.*?</system-reminder>(?:\s|\\n)*", re.DOTALL)
# Source: seen in clients 1.0 to 2.1 ("[Old tool result content cleared]"), CC 2.1 ("[Tool result cleared …]").
_CLEARED: Final = re.compile(r"\[(?:old )?tool (?:result|use)[^\]]*(?:cleared|removed)[^\]]*\]", re.IGNORECASE)
_CLEARED_IS_WITHIN: Final = 200
"""Characters of a tool result that the client's stand-in for it fits into."""

# Parts of system prompts and reminders that change by themselves, as clients 1.0 to 2.1 write them.
_FACETS: Final = {
    "version": re.compile(rf"^{BILLING_HEADER_PREFIX}.*$", re.MULTILINE),
    "date": re.compile(r"Today's date(?: is|:)[^\n]*"),
    "directory": re.compile(r"(?:Primary w|W)orking director(?:y|ies): [^\n]*"),
    "git": re.compile(
        r"(?:# |<)?gitStatus.*?(?=\n# |</gitStatus>|</system-reminder>|\Z)|Is (?:directory )?a git repo[^\n]*",
        re.DOTALL,
    ),
}
_HAS_FACET: Final = (BILLING_HEADER_PREFIX, "Today's date", "orking director", "gitStatus", "git repo")

CountTokens = Callable[[str], int]


class ContentBlock(NamedTuple):
    """A content block without its content.

    Attributes:
        kind: `tool`, `deferred_tool`, `system`, `billing_header`, or the type of a message's block.
        content_id: Salted id of the block as sent, less what normalising removes. Plain text has the same id in a
            string and in a list.
        canonical_id: The same whatever the order of keys, and whether a result's text stands in a string or a list.
        is_string: Whether it is a plain string that stands for the whole list.
        is_reminder: Whether it is nothing but a reminder of the client.
        is_cleared: Whether it is a tool result whose content the client cleared.
        has_image: Whether it holds an image or document.
        tokens: Counted tokens of the block alone, with those estimated for payloads.
        facets: Salted ids of the parts whose change has a name of its own, and of the rest.
    """

    kind: str
    content_id: int
    canonical_id: int
    is_string: bool
    is_reminder: bool
    is_cleared: bool
    has_image: bool
    tokens: int
    facets: tuple[tuple[str, int], ...]


def facet(block: ContentBlock, name: str) -> int | None:
    """Id of a part of a block; None if it has no such part."""
    return next((facet_id for part, facet_id in block.facets if part == name), None)


class BlockPayload(NamedTuple):
    """A base64 payload that was taken out of a segment's text: its digest and what it counts for."""

    digest: bytes
    estimated_tokens: int


def content_blocks(
    kind: SegmentKind, text: str, payloads: Sequence[BlockPayload], salt: bytes, count_tokens: CountTokens
) -> list[ContentBlock]:
    """The content blocks of a segment in order.

    Args:
        kind: What the segment is.
        text: Its normalised JSON.
        payloads: The payloads taken out of it, in order of position.
        salt: Secret of the store.
        count_tokens: Text to number of tokens.
    """
    remaining = iter(payloads)
    return [
        _describe(kind, value, list(islice(remaining, _n_payloads(value))), salt, count_tokens)
        for value in _values(kind, json.loads(text))
    ]


def _values(kind: SegmentKind, segment: Any) -> list[Any]:  # noqa: ANN401  (JSON is any type)
    """A segment's blocks; a string stands for a list of one text block."""
    if kind is SegmentKind.MESSAGE and not isinstance(segment, dict):
        return [segment]
    held = segment.get("content") if kind is SegmentKind.MESSAGE else segment
    return held if isinstance(held, list) else [held]


def _describe(
    kind: SegmentKind,
    value: Any,  # noqa: ANN401  (JSON is any type)
    payloads: list[BlockPayload],
    salt: bytes,
    count_tokens: CountTokens,
) -> ContentBlock:
    is_string = isinstance(value, str)
    block = {"type": "text", "text": value} if is_string else value
    sent = serialise(block)
    digests = b"".join(payload.digest for payload in payloads)
    text = _text(block)
    name = _kind(kind, block)
    return ContentBlock(
        kind=name,
        content_id=salted_u64(salt, _identity(block, text, sent) + digests),
        canonical_id=salted_u64(salt, _canonical(block).encode() + digests),
        is_string=is_string,
        is_reminder=kind is SegmentKind.MESSAGE and text is not None and _REMINDERS.fullmatch(text) is not None,
        is_cleared=name == "tool_result" and _is_cleared(block),
        has_image=bool(payloads) or name in {"image", "document"},
        tokens=count_tokens(sent) + sum(payload.estimated_tokens for payload in payloads),
        facets=tuple(sorted((part, salted_u64(salt, b + digests)) for part, b in _facets(kind, block, text, sent))),
    )


def _identity(block: object, text: str | None, sent: str) -> bytes:
    """What the cache compares: the bytes as sent; of plain text only the text, since its two keys can't carry more."""
    is_plain = isinstance(block, dict) and block.keys() == {"type", "text"} and block["type"] == "text"
    return b"text:" + serialise(text).encode() if is_plain else sent.encode()


def _kind(kind: SegmentKind, block: object) -> str:
    if kind is SegmentKind.MESSAGE:
        found = block.get("type") if isinstance(block, dict) else None
        return type_name(found) if isinstance(found, str) else OTHER
    if kind is SegmentKind.SYSTEM:
        return BILLING_HEADER if (_text(block) or "").startswith(BILLING_HEADER_PREFIX) else SYSTEM
    return DEFERRED_TOOL if isinstance(block, dict) and block.get("defer_loading") is True else TOOL


def _canonical(block: object) -> str:
    """JSON with sorted keys, and with strings of tool results as the list of text blocks that they stand for."""
    if isinstance(block, dict) and isinstance(block.get("content"), str):
        block = {**block, "content": [{"type": "text", "text": block["content"]}]}
    return json.dumps(block, separators=(",", ":"), sort_keys=True)


def _text(block: object) -> str | None:
    """The text of a text or system block; None if it has none."""
    text = block.get("text") if isinstance(block, dict) else None
    return text if isinstance(text, str) else None


def _is_cleared(block: dict[str, Any]) -> bool:
    content = block.get("content")
    texts = [content] if isinstance(content, str) else [_text(part) for part in content or ()]
    return any(t is not None and len(t) <= _CLEARED_IS_WITHIN and _CLEARED.search(t) for t in texts)


def _facets(kind: SegmentKind, block: object, text: str | None, sent: str) -> Iterator[tuple[str, bytes]]:
    if kind is SegmentKind.TOOLS and isinstance(block, dict):
        yield "name", _bytes(block.get("name"))
        yield "description", _bytes(block.get("description"))
        yield "schema", _bytes(block.get("input_schema"))
    elif text is not None and any(word in text for word in _HAS_FACET):
        yield from _named_parts(text)
    if kind is SegmentKind.MESSAGE and _REMINDER in sent:
        rest = None if text is None else _REMINDERS.sub("", text)
        yield WITHOUT_REMINDERS, _identity(block, rest, _REMINDERS.sub("", sent))


def _named_parts(text: str) -> Iterator[tuple[str, bytes]]:
    """The parts of a system prompt or reminder that change by themselves, then what is left without them."""
    rest = text
    for name, pattern in _FACETS.items():
        found = "\n".join(match.group() for match in pattern.finditer(rest))
        if found:
            yield name, _utf8(found)
            rest = pattern.sub("", rest)
    yield "rest", _utf8(rest)


def _utf8(text: str) -> bytes:
    """JSON may escape half a surrogate pair."""
    return text.encode("utf-8", "surrogatepass")


def _bytes(value: object) -> bytes:
    return serialise(value).encode()


def _n_payloads(value: object) -> int:
    """How many payloads normalising took out of a block."""
    if isinstance(value, dict):
        own = value.get("type") == "base64" and isinstance(value.get("data"), str)
        return own + sum(_n_payloads(item) for item in value.values())
    if isinstance(value, list):
        return sum(map(_n_payloads, value))
    return 0
