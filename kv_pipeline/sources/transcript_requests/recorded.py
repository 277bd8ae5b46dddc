"""Requests that a newer client recorded: put together from shapes, messages and earlier requests, and verified.

    api-request-shape   {shapeHash, shape{system, tools}}
    api-request-blob    {hash, message}
    api-request         {id, shapeHash, params, base, keep, tail, cacheControl, requestDigest}

A request's messages are the first `keep` of the request `base`, then those that `tail` names by digest. `requestDigest`
is the SHA-256 of the whole: shape, params and messages as one object with sorted keys, with the breakpoints in it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from kv_pipeline.sources.transcript_requests.messages import (
    Sent,
    canonical,
    parse,
    sent_message,
    with_marker,
)
from kv_pipeline.sources.transcript_requests.records import Record, value_of

RECENT_REQUESTS: Final = 16
"""Requests whose messages are kept at hand: about as many as conversations and sub-agents that run at a time."""
_SECTIONS: Final = ("tools", "system", "messages")
_NULL: Final = b"null"
_Item = TypeVar("_Item")


class NotRebuiltError(Exception):
    """A request can't be rebuilt or verified.

    Args:
        reason: Short machine-readable reason.
        found: What is wrong, without content.
    """

    def __init__(self, reason: str, found: str) -> None:
        super().__init__(found)
        self.reason, self.found = reason, found


class Shape(NamedTuple):
    """Tools and system prompt as raw JSON, and the whole as an object; None where it was not sent."""

    tools: bytes | None
    system: bytes | None
    value: Mapping[str, Any]


class Marker(NamedTuple):
    """A breakpoint of a request.

    Attributes:
        path: Where it stands in the request.
        control: Its `cache_control`.
    """

    path: tuple[str | int, ...]
    control: Any

    @property
    def ttl(self) -> str:
        """Lifetime that it asks for."""
        return "1h" if isinstance(self.control, dict) and self.control.get("ttl") == "1h" else "5m"


class Rebuilt(NamedTuple):
    """A request, verified."""

    shape: Shape
    params: Mapping[str, Any]
    messages: list[Sent]
    markers: list[Marker]


class _Request(NamedTuple):
    base: str | None
    keep: int
    tail: list[str]
    shape_hash: str
    params: Any
    markers: list[Marker] | None
    digest: str | None


@dataclass(slots=True)
class _Chain:
    """Hash states of the request verified last, one behind each of its first messages."""

    head: bytes = b""
    messages: list[Sent] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)


class RequestRecords:
    """What the `api-request…` records of one session's files say, in the order of the lines."""

    def __init__(self) -> None:
        self._shapes: dict[str, Shape] = {}
        self._messages: dict[str, Sent] = {}
        self._requests: dict[str, _Request] = {}
        self._recent: OrderedDict[str, list[Sent]] = OrderedDict()
        self._chain = _Chain()

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def add_shape(self, record: Record) -> None:
        """Note tools and system prompt.

        Raises:
            NotRebuiltError: It is not what its hash says.
        """
        raw, value = bytes(record.shape), parse(bytes(record.shape))
        if record.shape_hash is None or not isinstance(value, dict):
            raise NotRebuiltError("odd_request_record", "a shape has no hash or is no object")
        if _sha256(canonical(value)) != record.shape_hash:
            raise NotRebuiltError("hash_mismatch", "tools and system prompt are not those that their hash names")
        parts = {key: bytes(part) for key, part in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).items()}
        tools, system = (part if part != _NULL else None for part in map(parts.get, ("tools", "system")))
        self._shapes[record.shape_hash] = Shape(tools, system, value)

    def add_blob(self, record: Record) -> None:
        """Note a message that is recorded whole.

        Raises:
            NotRebuiltError: It is not what its hash says.
        """
        message = sent_message(bytes(record.message))
        if record.hash is None or message is None:
            raise NotRebuiltError("odd_request_record", "a recorded message has no hash or no role")
        if message.digest() != record.hash:
            raise NotRebuiltError("hash_mismatch", "a message is not the one that its hash names")
        self._messages.setdefault(record.hash, message)

    def add_message(self, message: Sent) -> None:
        """Note a message that was put together from records, to be found by its digest."""
        try:
            self._messages.setdefault(message.digest(), message)
        except (ValueError, RecursionError):
            return  # no request can name it

    def add_request(self, record: Record) -> None:
        """Note a request.

        Raises:
            NotRebuiltError: It has no id or no shape.
        """
        if record.id is None or record.shape_hash is None:
            raise NotRebuiltError("odd_request_record", "a recorded request has no id or names no shape")
        markers = _markers(value_of(record.cache_control))
        self._requests[record.id] = _Request(
            record.base, record.keep, record.tail, record.shape_hash, value_of(record.params), markers,
            record.request_digest,
        )  # fmt: skip

    def unknown_of(self, record: Record) -> bool:
        """Whether a request names messages that are not known yet."""
        return any(digest not in self._messages for digest in record.tail)

    def shape_of(self, request_id: str) -> tuple[Shape, Mapping[str, Any]] | None:
        """Tools, system prompt and params of a request, whether or not its messages are known."""
        request = self._requests.get(request_id)
        shape = self._shapes.get(request.shape_hash) if request else None
        return (shape, request.params) if request and shape and isinstance(request.params, dict) else None

    def rebuild(self, request_id: str) -> Rebuilt:
        """Put a request together and verify it.

        Raises:
            NotRebuiltError: Something of it is not there or does not fit.
        """
        request = self._requests.get(request_id)
        if request is None:
            raise NotRebuiltError("request_not_recorded", "the request that an answer names is not recorded")
        shape = self._shapes.get(request.shape_hash)
        if shape is None:
            raise NotRebuiltError("unknown_shape", "tools and system prompt of a request are not recorded")
        if not isinstance(request.params, dict) or request.markers is None:
            raise NotRebuiltError("odd_request_record", "params or breakpoints of a request are not as expected")
        messages = self._messages_of(request_id)
        digest = self._digest(request, shape, messages)
        if digest is None or request.digest not in (None, digest):
            raise NotRebuiltError("digest_mismatch", "a rebuilt request does not have the digest that was recorded")
        return Rebuilt(shape, request.params, messages, request.markers)

    def _messages_of(self, request_id: str) -> list[Sent]:
        known, tails = self._parts_of(request_id)
        messages = [*known, *self._named(digest for tail in reversed(tails) for digest in tail)]
        self._remember(request_id, messages)
        return messages

    def _parts_of(self, request_id: str) -> tuple[list[Sent], list[list[str]]]:
        """What a request keeps of one at hand, and the tails from its own back to there, or to the first request's."""
        tails: list[list[str]] = []
        current: str | None = request_id
        needed: int | None = None
        seen: set[str] = set()
        while current is not None and needed != 0:
            if current in self._recent:
                return _first(self._recent[current], needed), tails
            request = self._requests.get(current)
            if request is None or current in seen:
                raise NotRebuiltError("unknown_base", "a request continues one that is not recorded")
            seen.add(current)
            kept = request.keep if request.base is not None else 0
            tails.append(_first(request.tail, None if needed is None else max(0, needed - kept)))
            needed = kept if needed is None else min(kept, needed)
            current = request.base
        return [], tails

    def _named(self, digests: Iterable[str]) -> list[Sent]:
        found = [self._messages.get(digest) for digest in digests]
        messages = [message for message in found if message is not None]
        if len(messages) < len(found):
            raise NotRebuiltError("unknown_message", "no record holds a message that a request names by its hash")
        return messages

    def _remember(self, request_id: str, messages: list[Sent]) -> None:
        self._recent[request_id] = messages
        self._recent.move_to_end(request_id)
        if len(self._recent) > RECENT_REQUESTS:
            self._recent.popitem(last=False)

    def _digest(self, request: _Request, shape: Shape, messages: list[Sent]) -> str | None:
        """SHA-256 of the whole request; None if a breakpoint leads nowhere."""
        by_section = {section: [m for m in request.markers or () if m.path[0] == section] for section in _SECTIONS}
        whole = {**shape.value, **request.params, "messages": None}
        try:
            parts = {key: _marked(key, value, by_section.get(key, ())) for key, value in whole.items()}
            marked = _marked_messages(messages, by_section["messages"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        keys = sorted(whole)
        before = b"".join(b"%b:%b," % (canonical(key), parts[key]) for key in keys if key < "messages")
        after = b"".join(b",%b:%b" % (canonical(key), parts[key]) for key in keys if key > "messages")
        state = self._hashed(b"{" + before + b'"messages":[', messages, marked)
        state.update(b"]" + after + b"}")
        return str(state.hexdigest())

    def _hashed(self, head: bytes, messages: list[Sent], marked: Mapping[int, bytes]) -> Any:  # noqa: ANN401  (hashlib)
        """The hash behind the last message; what the request before has in common is not hashed again."""
        chain = self._chain
        n_unmarked = min(marked, default=len(messages))
        n_shared = _n_shared(chain.messages, messages, n_unmarked) if chain.head == head else 0
        if not n_shared:
            chain.head, chain.states = head, []
        chain.messages, chain.states = messages, chain.states[:n_shared]
        state = chain.states[-1].copy() if chain.states else hashlib.sha256(head)
        for index in range(len(chain.states), len(messages)):
            state.update((b"," if index else b"") + marked.get(index, messages[index].canonical))
            if index < n_unmarked:
                chain.states.append(state.copy())
        return state


def _first(items: list[_Item], n: int | None) -> list[_Item]:
    """The first n of a list, or all.

    Raises:
        NotRebuiltError: There are fewer.
    """
    if n is not None and n > len(items):
        raise NotRebuiltError("unknown_base", "a request keeps more messages than the one before it had")
    return items[:n]


def _n_shared(before: Sequence[Sent], now: Sequence[Sent], limit: int) -> int:
    """Length of the common beginning of two lists of the same objects, up to a limit."""
    limit = min(limit, len(before))
    return next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a is not b or i == limit), limit)


def _marked(key: str, value: object, markers: Sequence[Marker]) -> bytes:
    if key == "messages":
        return b""
    whole = canonical({key: value})
    for marker in markers:
        whole = with_marker(whole, marker.path, marker.control)
    return whole[len(canonical(key)) + 2 : -1]


def _marked_messages(messages: Sequence[Sent], markers: Sequence[Marker]) -> dict[int, bytes]:
    """Index to canonical message, of those with breakpoints."""
    marked: dict[int, bytes] = {}
    for marker in markers:
        _, index, *path = marker.path
        if not isinstance(index, int) or not path:
            raise ValueError("a breakpoint that sits on no block")
        marked[index] = with_marker(marked.get(index, messages[index].canonical), path, marker.control)
    return marked


def _markers(value: object) -> list[Marker] | None:
    """The breakpoints of a request; None if they are not as expected."""
    if value is None:
        return []
    if not isinstance(value, list):
        return None
    markers = [_marker(entry) for entry in value]
    found = [marker for marker in markers if marker is not None]
    return found if len(found) == len(markers) else None


def _marker(entry: object) -> Marker | None:
    path = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(path, list) or not path or path[0] not in _SECTIONS:
        return None
    is_path = all(isinstance(step, str) or _is_index(step) for step in path)
    return Marker(tuple(path), entry.get("value")) if is_path and len(path) > 1 and _is_index(path[1]) else None


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
