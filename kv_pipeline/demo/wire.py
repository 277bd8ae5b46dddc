"""JSON as the proxy re-serialises it, and the messages a request is made of.

The proxy is a Go program that decodes a body into structs and encodes it again: object keys of message
content come out sorted, and `<`, `>`, `&` and the two Unicode line separators are escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

Json = dict[str, Any]

_AS_GIVEN = msgspec.json.Encoder()
_SORTED = msgspec.json.Encoder(order="sorted")
_API_CHARS_PER_TOKEN = 3.1
_BLOCK_OVERHEAD_TOKENS = 5
_IMAGE_TOKENS = 85


def compact(value: object) -> str:
    """JSON without spaces, keys in the given order, as the client writes it."""
    return _AS_GIVEN.encode(value).decode()


def go(value: object, *, is_sorted: bool = False) -> str:
    """JSON as Go's encoder writes it; `is_sorted` where the proxy holds a map and not a struct."""
    text = (_SORTED if is_sorted else _AS_GIVEN).encode(value).decode()
    return go_escaped(text)


def go_escaped(text: str) -> str:
    """JSON text with the characters escaped that Go escapes; all of them can only stand inside strings."""
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def estimated_tokens(text: str) -> int:
    """The demo API's own tokenizer: a count from characters, deliberately not cl100k_base."""
    return _BLOCK_OVERHEAD_TOKENS + int(len(text) / _API_CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Block:
    """One content block as sent.

    Attributes:
        wire: Its JSON without a breakpoint, keys sorted.
        tokens: What the demo API counts for it.
    """

    wire: str
    tokens: int

    @classmethod
    def of(cls, content: Json) -> Block:
        """The block for one content object."""
        wire = go(content, is_sorted=True)
        tokens = _IMAGE_TOKENS if content["type"] == "image" else estimated_tokens(wire)
        return cls(wire, tokens)

    def marked(self, ttl: str) -> str:
        """The block with a breakpoint; `cache_control` sorts before every other key a block has."""
        return f'{{"cache_control":{cache_control(ttl)},{self.wire[1:]}'


@dataclass(frozen=True, slots=True)
class Message:
    """One message as sent.

    Attributes:
        role: user, assistant or system.
        blocks: Its content blocks; none for the empty system message that follows a compaction.
        plain: Its JSON when no breakpoint sits on it.
    """

    role: str
    blocks: tuple[Block, ...]
    plain: str

    @classmethod
    def of(cls, role: str, contents: list[Json]) -> Message:
        """The message with these content objects.

        A lone text block that carries no breakpoint is sent as a bare string, except by the assistant.
        """
        blocks = tuple(Block.of(content) for content in contents)
        if role != "assistant" and len(contents) == 1 and contents[0]["type"] == "text":
            content = go(contents[0]["text"])
        else:
            content = f"[{','.join(block.wire for block in blocks)}]"
        return cls(role, blocks, f'{{"role":"{role}","content":{content}}}')

    def marked(self, ttl: str) -> str:
        """Its JSON with a breakpoint on the last block."""
        parts = [block.wire for block in self.blocks[:-1]] + [self.blocks[-1].marked(ttl)]
        return f'{{"role":"{self.role}","content":[{",".join(parts)}]}}'


def cache_control(ttl: str) -> str:
    """The breakpoint object inside message content, keys sorted."""
    return '{"ttl":"1h","type":"ephemeral"}' if ttl == "1h" else '{"type":"ephemeral"}'


def text_block(text: str) -> Json:
    """A text content object."""
    return {"type": "text", "text": text}
