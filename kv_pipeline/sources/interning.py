"""Content-addressing of segments: what a request repeats is recognised by its bytes and never parsed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from kv_pipeline.core.hashing import SEGMENT_ID_BYTES, salted_digest, salted_u64
from kv_pipeline.core.normalise import (
    Marker,
    NormalisedSegment,
    SegmentKind,
    normalise,
    split_billing_churn,
    without_markers,
)
from kv_pipeline.core.payloads import UNSEEN_BLOCK, unseen_payload

Row = tuple[Any, ...]

CACHE_BYTES: Final = 32 * 1024 * 1024
"""Raw bytes a generation of the cache may hold; two generations exist at a time."""
FLUSH_CHARACTERS: Final = 8 * 1024 * 1024
"""Text handed on at a time; bounds the memory of reading a database of any size."""


class Interned(NamedTuple):
    """A segment of a request.

    Attributes:
        segment_index: Number of the segment within its database.
        segment_id: Salted digest of its content, `SEGMENT_ID_BYTES` long.
        markers: Breakpoints of this occurrence, which are not part of the segment's content.
        billing_header_id: Salted id of the billing header's changing values, None without one.
    """

    segment_index: int
    segment_id: bytes
    markers: tuple[Marker, ...]
    billing_header_id: int | None


@dataclass(frozen=True, slots=True)
class InternedMessages:
    """The messages of a request, kept so that those which another request repeats are had by slicing, all at once.

    Attributes:
        indexes: Numbers of their segments, in order.
        ids: Ids of their segments, one after the other.
        marked: The few messages with breakpoints, in order: 0-based position among the messages, and breakpoints.
    """

    indexes: list[int] = field(default_factory=list)
    ids: bytes = b""
    marked: tuple[tuple[int, tuple[Marker, ...]], ...] = ()

    def first(self, n_messages: int) -> InternedMessages:
        """The first messages alone."""
        return InternedMessages(
            self.indexes[:n_messages],
            self.ids[: n_messages * SEGMENT_ID_BYTES],
            tuple([marked for marked in self.marked if marked[0] < n_messages]),
        )

    def followed_by(self, added: Sequence[Interned]) -> InternedMessages:
        """These and more messages behind them."""
        numbered = enumerate(added, len(self.indexes))
        return InternedMessages(
            self.indexes + [message.segment_index for message in added],
            self.ids + b"".join([message.segment_id for message in added]),
            self.marked + tuple([(index, message.markers) for index, message in numbered if message.markers]),
        )


class SegmentInterner:
    """Numbers the distinct segments of one database.

    Args:
        salt: Secret of the store.
        keep_billing_header: Leave billing headers as they are.
        emit: Receives new segments in batches, as rows of the segments table less the database.
    """

    def __init__(self, salt: bytes, keep_billing_header: bool, emit: Callable[[list[Row]], None]) -> None:
        self._salt = salt
        self._keep_billing_header = keep_billing_header
        self._emit = emit
        self._young: dict[bytes, Interned] = {}
        self._old: dict[bytes, Interned] = {}
        self._young_bytes = 0
        self._latest: dict[SegmentKind, tuple[bytes, Interned]] = {}
        self._index_of: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._pending: list[Row] = []
        self._pending_characters = 0

    def intern(self, kind: SegmentKind, raw: bytes) -> Interned:
        """Number of a segment, given its JSON as sent.

        Raises:
            ValueError: The segment is not JSON.
            RecursionError: It is nested too deeply.
        """
        if kind is SegmentKind.SYSTEM and not self._keep_billing_header:
            raw, churn = split_billing_churn(raw)
            if churn is not None:
                return self._intern_repeated(kind, raw)._replace(billing_header_id=self._churn_id(churn))
        return self._intern_repeated(kind, raw)

    def _intern_repeated(self, kind: SegmentKind, raw: bytes) -> Interned:
        latest = self._latest.get(kind)
        if latest is not None and latest[0] == raw:  # the usual case for tools and system: comparing beats hashing
            return latest[1]
        interned = self._intern(kind, raw)
        if kind is not SegmentKind.MESSAGE:
            self._latest[kind] = (raw, interned)
        return interned

    def _intern(self, kind: SegmentKind, raw: bytes) -> Interned:
        # Only messages, the bulk, go without a prefix; no JSON text starts like one.
        key = raw if kind is SegmentKind.MESSAGE else kind.encode() + raw
        known = self._young.get(key)
        if known is None:
            known = self._old.get(key) or self._add(kind, raw)
            self._remember(key, known)
            if known.markers and kind is SegmentKind.MESSAGE:
                self._remember_bare(raw, known)
        return known

    def intern_unseen(self, kind: SegmentKind, seen: Sequence[bytes], key: bytes, n_tokens: int) -> Interned:
        """Number of tools or a system prompt that is known in part.

        Args:
            kind: Which of the two.
            seen: The tools or system blocks that are known, as JSON.
            key: What the rest is known by.
            n_tokens: Length of the rest, which comes first, in tokens.
        """
        known = normalise(kind, b"[" + b",".join(seen) + b"]", self._salt, keep_billing_header=True)
        payload = unseen_payload(self._salt, key, n_tokens)
        text = "[" + UNSEEN_BLOCK + ("," + known.text[1:] if seen else "]")
        blocks = 1 + known.n_content_blocks
        segment = replace(known, text=text, payloads=(payload, *known.payloads), n_content_blocks=blocks)
        length = payload.estimated_tokens.to_bytes(8, "little")
        return Interned(*self._number(kind.encode() + text.encode() + payload.digest + length, segment), (), None)

    def ids(self, indexes: Iterable[int]) -> bytes:
        """Ids of segments, one after the other."""
        return b"".join([self._ids[index] for index in indexes])

    def flush(self) -> None:
        """Hand on the segments that are still pending."""
        if self._pending:
            self._emit(self._pending)
        self._pending, self._pending_characters = [], 0

    def _remember(self, key: bytes, interned: Interned) -> None:
        if self._young_bytes > CACHE_BYTES:
            self._young, self._old, self._young_bytes = {}, self._young, 0
        self._young[key] = interned
        self._young_bytes += len(key)

    def _remember_bare(self, raw: bytes, known: Interned) -> None:
        """The next turns send the same message without its breakpoints."""
        bare = without_markers(raw, len(known.markers))
        if bare is not None:
            self._remember(bare, known._replace(markers=()))

    def _add(self, kind: SegmentKind, raw: bytes) -> Interned:
        segment = normalise(kind, raw, self._salt, keep_billing_header=self._keep_billing_header)
        numbered = self._number(
            kind.encode() + segment.text.encode() + b"".join([p.digest for p in segment.payloads]), segment
        )
        churn = segment.billing_churn
        return Interned(*numbered, segment.markers, None if churn is None else self._churn_id(churn))

    def _number(self, identity: bytes, segment: NormalisedSegment) -> tuple[int, bytes]:
        segment_id = salted_digest(self._salt, identity)
        index = self._index_of.get(segment_id)
        if index is None:
            index = self._index_of[segment_id] = len(self._ids)
            self._ids.append(segment_id)
            self._queue(index, segment_id, segment)
        return index, self._ids[index]

    def _churn_id(self, churn: str) -> int:
        return salted_u64(self._salt, churn.encode("utf-8", "surrogatepass"))

    def _queue(self, index: int, segment_id: bytes, segment: NormalisedSegment) -> None:
        payloads = [
            {"digest": p.digest, "n_bytes": p.n_bytes, "estimated_tokens": p.estimated_tokens} for p in segment.payloads
        ]
        self._pending.append(
            (index, segment_id, segment.kind.value, segment.role, list(segment.content_types))
            + (segment.n_content_blocks, segment.text, payloads)
        )
        self._pending_characters += len(segment.text)
        if self._pending_characters > FLUSH_CHARACTERS:
            self.flush()
