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
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from kv_pipeline.core.hashing import TokenIds
from kv_pipeline.core.tokenizer import Encode

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


class SectionRuns(NamedTuple):
    """The token runs of a request's sections, in prompt order."""

    tools: list[Key]
    system: list[Key]
    messages: list[Key]


def starts_after_cut(text: str) -> bool:
    """Whether a message may be tokenised apart from the one before it: it starts with `{"` and an ASCII letter."""
    return text[:2] == '{"' and text[2:3].isascii() and text[2:3].isalpha()


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

    def runs(self, request: RequestSegments) -> SectionRuns:
        """The request's token runs; concatenated, `tokens` of each gives the prompt's token ids."""
        return SectionRuns(
            tools=[] if request.tools is None else [("section", request.tools)],
            system=[] if request.system is None else [("section", request.system)],
            messages=self._message_runs(request.messages),
        )

    def tokens(self, key: Key) -> TokenIds:
        """Token ids of a run, shape (n,)."""
        known = self._tokens.get(key)
        if known is None:
            known = self._tokens[key] = self._tokenise(key)
        return known

    def _message_runs(self, messages: Sequence[int]) -> list[Key]:
        pieces = self._pieces(messages)
        if not pieces:
            return [("text", "[]")]
        keys: list[Key] = [("text", '[{"')] if starts_after_cut(self._segments[messages[0]].text) else []
        for piece in pieces:
            keys.append(("head", *piece))
            keys.append(("text", self._tail(piece) + ("]" if piece is pieces[-1] else ',{"')))
        return keys

    def _pieces(self, messages: Sequence[int]) -> list[tuple[int, ...]]:
        """Messages that must be tokenised together, almost always one each."""
        pieces: list[tuple[int, ...]] = []
        for index in messages:
            if pieces and not starts_after_cut(self._segments[index].text):
                pieces[-1] = (*pieces[-1], index)
            else:
                pieces.append((index,))
        return pieces

    def _tokenise(self, key: Key) -> TokenIds:
        kind, *arguments = key
        if kind == "text":
            return self._encode(str(arguments[0]))
        indexes = [index for index in arguments if isinstance(index, int)]
        text = self._segments[indexes[0]].text if kind == "section" else self._head(tuple(indexes))
        payloads = [self._segments[index].payload_tokens for index in indexes]
        return np.concatenate([*payloads, self._encode(text)])

    def _body(self, piece: tuple[int, ...]) -> str:
        text = ",".join(self._segments[index].text for index in piece)
        return text[2:] if starts_after_cut(text) else "[" + text

    def _head(self, piece: tuple[int, ...]) -> str:
        return self._body(piece).rstrip(_NOT_ALPHANUMERIC)

    def _tail(self, piece: tuple[int, ...]) -> str:
        last = self._segments[piece[-1]].text
        tail = last[len(last.rstrip(_NOT_ALPHANUMERIC)) :]
        return tail if len(tail) < len(last) else self._body(piece)[len(self._head(piece)) :]
