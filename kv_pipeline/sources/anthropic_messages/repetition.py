"""Bodies that repeat an earlier one: only what is new in them is parsed.

A turn's body is the body of the turn before with a few messages added, so most of it is the same bytes. The parser
remembers where each message of recent bodies ended. A body that shares its first bytes with one of them shares all
messages that end there, since what JSON means up to a byte depends on nothing after it; those messages are cut out and
the short rest is parsed. Tools that end a body like an earlier one's are cut out too.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple

import numpy as np

from kv_pipeline.sources.anthropic_messages.body import Body, parse_body
from kv_pipeline.sources.interning import InternedMessages

RECENT_BODIES: Final = 8
"""Bodies remembered: about as many as conversations and sub-agents that run at a time."""
_MIN_BYTES: Final = 8192
_CHANGED_AT_END: Final = 3
"""Messages at the end of a body that the next turn sends otherwise: their breakpoints moved on."""
_HEAD_BYTES: Final = 1024
_MESSAGES_KEY: Final = b'"messages"'
_COMMA, _BRACKET = ord(","), ord("]")
# With the comma it can only be a key: inside a string the quote would end it, and a bare word follow.
_TOOLS_KEY: Final = b',"tools":'
_NO_TOOLS: Final = _TOOLS_KEY + b"null}"


class ParsedBody(NamedTuple):
    """A body whose first messages may be known already.

    Attributes:
        shared: The messages known from an earlier body.
        rest: The body without them.
        first: Offset of the first message.
        ends: Offset behind each message, shared ones included; None if they can't be told from the bytes.
        tail: The body's last bytes from its tools on; empty if something else is last.
        continued: The earlier body whose next turn it is by all appearances, and whose place it takes; or None.
    """

    shared: InternedMessages
    rest: Body
    first: int
    ends: list[int] | None
    tail: bytes
    continued: KnownBody | None = None


class KnownBody(NamedTuple):
    """A remembered body with its messages and where they are, and its tools and the tail that they are in."""

    raw: bytes
    first: int
    ends: list[int]
    messages: InternedMessages
    tools: bytes | None
    tail: bytes

    def n_shared(self, raw: bytes) -> int:
        """Number of first messages that another body repeats byte for byte."""
        n_bytes = shared_prefix_bytes(self.raw, raw)
        n_messages = bisect_right(self.ends, n_bytes)
        # A number could go on in the other body; anything else ends where it ends.
        if n_messages and raw[self.ends[n_messages - 1]] not in (_COMMA, _BRACKET):
            n_messages -= 1
        return n_messages

    def is_continued(self, n_shared: int) -> bool:
        """Whether a body that shares so many messages is the next turn by all appearances."""
        return n_shared > 0 and n_shared >= len(self.ends) - _CHANGED_AT_END


class RepetitionParser:
    """Parses the bodies of one database in the order they were recorded.

    Args:
        database_id: Name of the database, for errors.
    """

    def __init__(self, database_id: str) -> None:
        self._database_id = database_id
        self._recent: list[KnownBody] = []

    def parse(self, raw: bytes | None, row_id: int) -> ParsedBody:
        """Split a body into messages known already and the rest.

        Raises:
            InputError: As `parse_body`.
        """
        if raw is not None:
            n_shared, known = self._most_shared(raw)
            parsed = self._parse_rest(raw, known, n_shared, row_id) if known is not None else None
            if parsed is not None:
                return parsed
        body = parse_body(raw, self._database_id, row_id)
        first = (raw or b"").find(_MESSAGES_KEY + b":[") + len(_MESSAGES_KEY) + 2
        raw = raw or b""
        tail = _tail(raw, body.tools)
        return ParsedBody(InternedMessages(), body, first, _ends(raw, first, body.messages, len(raw) - len(tail)), tail)

    def remember(self, raw: bytes, parsed: ParsedBody, messages: InternedMessages) -> None:
        """Remember a body, all of whose messages are now interned, in place of the one it continues."""
        if parsed.ends is None or len(raw) < _MIN_BYTES:
            return
        known = KnownBody(raw, parsed.first, parsed.ends, messages, parsed.rest.tools, parsed.tail)
        others = [other for other in self._recent if other is not parsed.continued]
        self._recent = [known, *others][:RECENT_BODIES]

    def _most_shared(self, raw: bytes) -> tuple[int, KnownBody | None]:
        """The remembered body that shares the most messages; one that is continued ends the search."""
        best: tuple[int, KnownBody | None] = (0, None)
        for known in self._recent:
            if raw.startswith(known.raw[: min(_HEAD_BYTES, known.ends[0])]):
                n_shared = known.n_shared(raw)
                if n_shared > best[0]:
                    best = n_shared, known
                if known.is_continued(n_shared):
                    break
        return best

    def _parse_rest(self, raw: bytes, known: KnownBody, n_shared: int, row_id: int) -> ParsedBody | None:
        """Parse what is left without the shared messages; None if the bytes don't look as expected."""
        cut = known.ends[n_shared - 1]
        has_more = raw[cut] == _COMMA
        has_tail = bool(known.tail) and raw.endswith(known.tail, cut)
        stop = len(raw) - len(known.tail) if has_tail else len(raw)
        skeleton = raw[: known.first] + raw[cut + has_more : stop] + (_NO_TOOLS if has_tail else b"")
        rest = parse_body(skeleton, self._database_id, row_id)
        if has_more != bool(rest.messages):
            return None
        added = _ends(raw, cut + 1, rest.messages, stop) if has_more else _end_of_array(raw, cut, stop)
        if added is None:
            return None
        ends = known.ends[:n_shared] + added
        if has_tail:
            rest = rest._replace(tools=known.tools)
        tail = known.tail if has_tail else _tail(raw, rest.tools)
        continued = known if known.is_continued(n_shared) else None
        return ParsedBody(known.messages.first(n_shared), rest, known.first, ends, tail, continued)


def shared_prefix_bytes(left: bytes, right: bytes) -> int:
    """Length of the common prefix of two byte strings."""
    n_words = min(len(left), len(right)) // 8
    differs = np.frombuffer(left, np.uint64, n_words) != np.frombuffer(right, np.uint64, n_words)
    first = int(differs.argmax()) if n_words else 0
    n_equal = 8 * (first if n_words and differs[first] else n_words)
    tails = zip(left[n_equal : n_equal + 8], right[n_equal : n_equal + 8], strict=False)
    return n_equal + next(
        (index for index, (a, b) in enumerate(tails) if a != b), min(len(left), len(right), n_equal + 8) - n_equal
    )


def _ends(raw: bytes, start: int, messages: list[bytes], stop: int) -> list[int] | None:
    """Offsets behind messages that stand one after the other from `start` to the end of their array, or None."""
    ends = []
    for message in messages:
        end = start + len(message)
        if raw[start:end] != message or raw[end : end + 1] not in (b",", b"]"):
            return None
        ends.append(end)
        start = end + 1
    return None if not ends or _end_of_array(raw, ends[-1], stop) is None else ends


def _end_of_array(raw: bytes, offset: int, stop: int) -> list[int] | None:
    """Nothing more, if the messages end here; None if they don't, or if a second key of that name may follow."""
    is_end = raw[offset] == _BRACKET and raw.find(_MESSAGES_KEY, offset, stop) < 0
    return [] if is_end else None


def _tail(raw: bytes, tools: bytes | None) -> bytes:
    tail = _TOOLS_KEY + (tools or b"") + b"}"
    return tail if tools is not None and raw.endswith(tail) else b""
