"""Token ids of a request's three sections, each segment tokenised once.

A section's tokens are defined as those of its whole string. Segments may still be tokenised apart, because in
cl100k_base's split pattern two kinds of places are always a boundary between pre-tokens, and merges never cross one:

* after `{"` when an ASCII letter follows: a run of two or more punctuation characters is one pre-token, which ends
  there and never joins the letter. So `[{"` · `role":…},{"` · `role":…}]` is cut between messages.
* between an ASCII letter or digit and ASCII punctuation: pre-tokens that hold a letter or digit end with one.
  So a message's long head is tokenised once, and only the few characters after its last letter differ between
  being the last message (`…}]`) and not (`…},{"`).

A message that does not start with `{"` and a letter stays joined to the message before it. The naive definition
lives beside the tests, which compare the two.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, cast

import numpy as np

from kv_pipeline.core.hashing import TokenIds
from kv_pipeline.core.tokenizer import Encode, Engine

_NOT_ALPHANUMERIC: Final = "".join(set(map(chr, range(128))) - set(string.ascii_letters + string.digits))
_NO_TOKENS: Final[TokenIds] = np.empty(0, dtype=np.uint32)

Key = tuple[object, ...]
"""Identifies a run of tokens: the same key stands for the same tokens wherever it occurs."""


class SegmentContent(NamedTuple):
    """What tokenising needs of a segment.

    Attributes:
        text: Normalised JSON text.
        payload_tokens: Stand-in ids of its base64 payloads, counted before the segment's own tokens.
    """

    text: str
    payload_tokens: TokenIds = _NO_TOKENS


class RequestSegments(NamedTuple):
    """A request as segment numbers; None for a section that was not sent."""

    tools: int | None
    system: int | None
    messages: tuple[int, ...]


def starts_after_cut(text: str) -> bool:
    """Whether a message may be tokenised apart from the one before it: it starts with `{"` and an ASCII letter."""
    return text[:2] == '{"' and text[2:3].isascii() and text[2:3].isalpha()


Piece = tuple[int, ...]
"""Messages that must be tokenised together: one, unless the one after it can't be cut off."""

OPENING: Final[Key] = ("text", '[{"')
"""The run before the first message."""
EMPTY: Final[Key] = ("text", "[]")
"""The run of an empty list of messages."""


class SectionTokenizer:
    """Splits requests into token runs and tokenises each distinct run once.

    Args:
        encode: Text to token ids.
        segments: Segment number to content, for every segment that will be asked for.
    """

    def __init__(self, encode: Encode, segments: Mapping[int, SegmentContent]) -> None:
        self._encode = encode
        self._segments = segments
        self._tokens: dict[Key, TokenIds] = {}
        self._tails: dict[Piece, str] = {}
        self._uncuttable = {number for number, content in segments.items() if not starts_after_cut(content.text)}
        self._to_come: set[Key] = set()
        self._coming: Iterator[tuple[Key, TokenIds]] = iter(())

    @classmethod
    def ahead(cls, engine: Engine, segments: Mapping[int, SegmentContent]) -> SectionTokenizer:
        """One whose engine is told all long runs of the segments at once, and may be ahead of what is asked for."""
        tokenizer = cls(engine.encode, segments)
        runs = [section_run(n) if n in tokenizer._uncuttable else _head_run((n,)) for n in segments]
        tokenizer._to_come = set(runs)
        tokenizer._coming = zip(runs, engine.stream(map(tokenizer._run_text, runs)), strict=True)
        return tokenizer

    def tokens(self, key: Key) -> TokenIds:
        """Token ids of a run, shape (n,)."""
        known = self._tokens.get(key)
        if known is None:
            self._take(key) if key in self._to_come else self._keep(key, self._encode(self._run_text(key)))
            known = self._tokens[key]
        return known

    def opening(self, messages: Sequence[int]) -> list[Key]:
        """The runs before the first piece."""
        if not messages:
            return [EMPTY]
        return [] if messages[0] in self._uncuttable else [OPENING]

    def pieces(self, messages: tuple[int, ...]) -> list[Piece]:
        """The messages in pieces that are tokenised apart."""
        if self._uncuttable.isdisjoint(messages):
            return [(number,) for number in messages]
        pieces: list[Piece] = []
        for number in messages:
            if pieces and number in self._uncuttable:
                pieces[-1] = (*pieces[-1], number)
            else:
                pieces.append((number,))
        return pieces

    def begins_piece(self, messages: tuple[int, ...]) -> bool:
        """Whether there are messages, and the first begins a piece whatever comes before it."""
        return bool(messages) and messages[0] not in self._uncuttable

    def piece_runs(self, piece: Piece, *, is_last: bool) -> tuple[Key, Key]:
        """The two runs of a piece: its head, and the end that depends on whether a piece follows."""
        tail = self._tails.get(piece)
        if tail is None:
            text = self._text(piece)
            tail = self._tails[piece] = text[len(_head(text)) :]
        return _head_run(piece), ("text", tail + ("]" if is_last else ',{"'))

    def runs(self, request: RequestSegments) -> list[Key]:
        """All runs of a request; concatenated, their tokens are the prompt's token ids."""
        pieces = self.pieces(request.messages)
        ends = [self.piece_runs(piece, is_last=index == len(pieces) - 1) for index, piece in enumerate(pieces)]
        sections = [section_run(number) for number in (request.tools, request.system) if number is not None]
        return [*sections, *self.opening(request.messages), *(run for runs in ends for run in runs)]

    def _take(self, key: Key) -> None:
        """What the engine has made ahead, up to a run."""
        for run, tokens in self._coming:
            self._to_come.discard(run)
            self._keep(run, tokens)
            if run == key:
                return

    def _keep(self, key: Key, tokens: TokenIds) -> None:
        kind, *numbers = key
        payloads = [] if kind == "text" else [self._segments[number].payload_tokens for number in _piece(numbers)]
        self._tokens[key] = np.concatenate([*payloads, tokens]) if any(map(len, payloads)) else tokens

    def _run_text(self, key: Key) -> str:
        kind, *numbers = key
        if kind == "text":
            return str(numbers[0])
        piece = _piece(numbers)
        return self._segments[piece[0]].text if kind == "section" else _head(self._text(piece))

    def _text(self, piece: Piece) -> str:
        text = ",".join([self._segments[number].text for number in piece])
        return "[" + text if piece[0] in self._uncuttable else text[2:]


def section_run(number: int) -> Key:
    """The run of the tools or system section, which is tokenised whole."""
    return ("section", number)


def _head_run(piece: Piece) -> Key:
    """The run of a piece up to its last letter or digit."""
    return ("head", *piece)


def _piece(numbers: Sequence[object]) -> Piece:
    return cast("Piece", numbers)


def _head(text: str) -> str:
    return text.rstrip(_NOT_ALPHANUMERIC)
