"""The demo API's prompt cache: an honest simulator of the documented rules, with its own token estimate.

Source: the vendor's prompt-caching documentation. Prefix order tools, system, messages; entries are written
only at breakpoints, at most 4; a breakpoint reads the longest entry within 20 positions back; an entry
lives 5 minutes or 1 hour from its last use, counted from the start of the request; it is readable once the
response that wrote it began; prefixes under 1,024 tokens are not cached; entries belong to one model and
one user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

LOOK_BACK_POSITIONS = 20
MINIMUM_TOKENS = 1_024
LIFETIME_MS = {"5m": 300_000, "1h": 3_600_000}
FRAMING_TOKENS = 3
"""Uncached tokens that every request is billed for beyond its content."""


class Position(NamedTuple):
    """The prefix that ends with one block: a digest of everything up to it, and its length in tokens."""

    chain: bytes
    tokens: int


START = Position(b"", 0)


def next_position(previous: Position, text: str, tokens: int) -> Position:
    """The prefix that a block appends to `previous`."""
    return Position(blake2b(previous.chain + text.encode(), digest_size=16).digest(), previous.tokens + tokens)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as the cache sees it.

    Attributes:
        model: Model id.
        positions: The prefix after every block: tools, system, messages.
        marks: Lifetime ("5m" or "1h") by index of the position that carries a breakpoint.
    """

    model: str
    positions: Sequence[Position]
    marks: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request is billed, in tokens."""

    input_tokens: int
    read_tokens: int
    write_5m_tokens: int
    write_1h_tokens: int
    output_tokens: int

    @property
    def write_tokens(self) -> int:
        """Tokens written to the cache, whatever the lifetime."""
        return self.write_5m_tokens + self.write_1h_tokens

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt."""
        return self.input_tokens + self.read_tokens + self.write_tokens


@dataclass(slots=True)
class _Entry:
    readable_from_ms: int
    expires_ms: int
    lifetime_ms: int


class PromptCache:
    """The cache entries of one user."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, bytes], _Entry] = {}

    def hit(self, prompt: Prompt, at_ms: int) -> int:
        """Index of the longest cached prefix that a request starting now can read, or -1."""
        for mark in sorted(prompt.marks, reverse=True):
            for index in range(mark, max(-1, mark - LOOK_BACK_POSITIONS), -1):
                if self._is_readable(prompt, index, at_ms):
                    return index
        return -1

    def settle(self, prompt: Prompt, hit: int, at_ms: int, first_byte_ms: int, output_tokens: int) -> Usage:
        """Refresh what was read, write the breakpoints behind it, and bill the request."""
        self._refresh(prompt, hit, at_ms)
        written = [m for m in sorted(prompt.marks) if m > hit and self._is_long_enough(prompt, m)]
        for mark in written:
            lifetime_ms = LIFETIME_MS[prompt.marks[mark]]
            entry = _Entry(first_byte_ms, at_ms + lifetime_ms, lifetime_ms)
            self._entries[prompt.model, prompt.positions[mark].chain] = entry
        return _bill(prompt, hit, written, output_tokens)

    def _is_readable(self, prompt: Prompt, index: int, at_ms: int) -> bool:
        entry = self._entries.get((prompt.model, prompt.positions[index].chain))
        return entry is not None and entry.readable_from_ms <= at_ms < entry.expires_ms

    def _is_long_enough(self, prompt: Prompt, index: int) -> bool:
        return prompt.positions[index].tokens >= MINIMUM_TOKENS

    def _refresh(self, prompt: Prompt, hit: int, at_ms: int) -> None:
        """A use renews the entry that was read and the marked entries it contains."""
        for index in {hit, *(mark for mark in prompt.marks if mark <= hit)} - {-1}:
            if self._is_readable(prompt, index, at_ms):
                entry = self._entries[prompt.model, prompt.positions[index].chain]
                entry.expires_ms = at_ms + entry.lifetime_ms


def _bill(prompt: Prompt, hit: int, written: list[int], output_tokens: int) -> Usage:
    """Read up to the hit, 1-hour writes to the last 1-hour breakpoint, 5-minute writes to the last one."""
    read_to = prompt.positions[hit].tokens if hit >= 0 else 0
    hour_to = max((prompt.positions[m].tokens for m in written if prompt.marks[m] == "1h"), default=read_to)
    cached_to = max((prompt.positions[m].tokens for m in written), default=read_to)
    return Usage(
        input_tokens=prompt.positions[-1].tokens - cached_to + FRAMING_TOKENS,
        read_tokens=read_to,
        write_5m_tokens=cached_to - hour_to,
        write_1h_tokens=hour_to - read_to,
        output_tokens=output_tokens,
    )
