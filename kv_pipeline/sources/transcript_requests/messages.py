"""Messages as a client sends them, put together from the blocks that records hold, and their digests.

A digest is the SHA-256 of the message as compact JSON with sorted keys, where a plain string counts as the list of one
text block that it stands for. So a digest does not tell in which form the message was sent. Clients send a user or
system message of one plain text block as a string, unless a breakpoint sits on it. Measured in requests with tools: all
221 unmarked ones of client 2.1.329, 158 of 168 of 2.0.30.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kv_pipeline.sources.anthropic_messages.answer import load_json

_blocks_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])
_parts_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LITERAL: Final = "\uf8ffnumber "
_LITERALS: Final = re.compile(f'"{_LITERAL}([^"]*)"')


class Sent:
    """A message that a client sent.

    Attributes:
        role: Its role.
        blocks: Its content blocks as raw JSON; a string is one text block.
        rest: Its other keys as raw JSON.
        plain: Segment of the message without a breakpoint, once it is known.
        listed: Segment of the message with one, once it is known.
    """

    __slots__ = ("_canonical", "blocks", "listed", "plain", "rest", "role")

    def __init__(self, role: str, blocks: Sequence[bytes], rest: dict[str, bytes] | None = None) -> None:
        self.role = role
        self.blocks = list(blocks)
        self.rest = rest or {}
        self.plain: int | None = None
        self.listed: int | None = None
        self._canonical: bytes | None = None

    @property
    def canonical(self) -> bytes:
        """Compact JSON with sorted keys and a list of blocks.

        Raises:
            ValueError: A block is not JSON.
            RecursionError: A block is nested too deeply.
        """
        if self._canonical is None:
            self._canonical = canonical(parse(self.raw(is_marked=True)))
        return self._canonical

    def digest(self) -> str:
        """What an `api-request` names the message by.

        Raises:
            ValueError, RecursionError: As `canonical`.
        """
        return hashlib.sha256(self.canonical).hexdigest()

    def raw(self, *, is_marked: bool) -> bytes:
        """The message as JSON in the form in which clients send it, with or without a breakpoint."""
        text = None if is_marked or self.role == "assistant" or len(self.blocks) != 1 else _plain_text(self.blocks[0])
        content = b"[" + b",".join(self.blocks) + b"]" if text is None else text
        rest = b"".join(b"," + json.dumps(key).encode() + b":" + value for key, value in self.rest.items())
        return b'{"role":' + json.dumps(self.role).encode() + b',"content":' + content + rest + b"}"


def blocks_of(content: bytes) -> list[bytes]:
    """The blocks of a message's content as raw JSON; none for what is neither a string nor a list.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    beginning = content[:1]
    if beginning == b'"':
        return [b'{"type":"text","text":' + content + b"}"]
    if beginning != b"[":
        return []
    try:
        return [bytes(block) for block in _blocks_decoder.decode(content)]
    except msgspec.MsgspecError:
        return [json.dumps(block).encode() for block in load_json(content)]


def sent_message(raw: bytes) -> Sent | None:
    """A message as a record holds it whole; None if it is none.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        parts = {key: bytes(value) for key, value in _parts_decoder.decode(raw).items()}
    except msgspec.MsgspecError:
        value = load_json(raw)
        if not isinstance(value, dict):
            return None
        parts = {key: json.dumps(part).encode() for key, part in value.items()}
    role = load_json(parts.pop("role", b"null"))
    content = parts.pop("content", b"null")
    return Sent(role, blocks_of(content), parts) if isinstance(role, str) else None


def canonical(value: object) -> bytes:
    """What `parse` gave as compact JSON with sorted keys, as JavaScript writes it.

    Raises:
        RecursionError: It is nested too deeply.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if _LITERAL in text:
        text = _LITERALS.sub(r"\1", text)
    return text.encode("utf-8", "backslashreplace")  # JavaScript escapes half a surrogate pair the same way


def with_marker(message: bytes, block_path: Sequence[Any], control: object) -> bytes:
    """A canonical message with a `cache_control` on the block that a path in it leads to.

    Raises:
        ValueError, LookupError, TypeError: The path leads to no object.
    """
    value = parse(message)
    at: Any = value
    for step in block_path:
        at = at[step]
    at["cache_control"] = control
    return canonical(value)


def parse(raw: bytes) -> Any:  # noqa: ANN401  (JSON is any type)
    """Parsed JSON, where fractions stay as they were written: Python would write 0.00001 otherwise than JavaScript."""
    return json.loads(raw.decode("utf-8", "surrogatepass"), parse_float=lambda text: _LITERAL + text)


def _plain_text(block: bytes) -> bytes | None:
    """The text, as raw JSON, of a block that is nothing but text."""
    try:
        parts = _parts_decoder.decode(block)
    except msgspec.MsgspecError:
        return None
    if parts.keys() != {"type", "text"} or bytes(parts["type"]) != b'"text"':
        return None
    text = bytes(parts["text"])
    return text if text.startswith(b'"') else None
