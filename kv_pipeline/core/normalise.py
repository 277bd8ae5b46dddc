"""From a segment as it was sent to the text whose tokens count.

A request is tools, system, then messages: one segment each. Normalising removes `cache_control` and `signature` at
every depth, takes base64 payloads out, zeroes the values of the billing header that change per turn while the API's
own cache ignores them, and serialises with `json.dumps(obj, separators=(",", ":"))`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from kv_pipeline.core.payloads import Payload, read_payload

OTHER_TYPE: Final = "other"
_TYPE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}", re.ASCII)
REMOVED_KEYS: Final = frozenset({"cache_control", "signature"})
NORMALISATION: Final = "json-compact-ascii/without-cache_control-signature/base64-out/v1"
"""Names the rules above; part of the fingerprint of everything derived from segments."""

BILLING_HEADER_PREFIX: Final = "x-anthropic-billing-header:"
_BILLING_CHURN: Final = re.compile(r"\b(cch|cc_prev_req|cc_prompt_id)=([^;\s]*)")
_MARKER_KEY: Final = b'"cache_control"'
_MARKER: Final = re.compile(_MARKER_KEY + rb':\{(?:"[a-z]+":"[a-z0-9]+",?)*\}')
_HEADER_IS_WITHIN: Final = 256
"""Bytes of the system segment in which the header's beginning is looked for."""
_encoder: Final = json.JSONEncoder(separators=(",", ":"))  # what json.dumps makes anew for each call
_NEEDS_CLEANING: Final = ('"cache_control"', '"signature"', '"base64"', BILLING_HEADER_PREFIX)


class SegmentKind(StrEnum):
    """The part of a request that a segment is."""

    TOOLS = "tools"
    SYSTEM = "system"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class Marker:
    """A `cache_control` inside a segment.

    Attributes:
        block_index: 0-based tool, system block, or content block of the message that ends with the marker.
        ttl: `5m` or `1h`.
    """

    block_index: int
    ttl: str


@dataclass(frozen=True, slots=True)
class NormalisedSegment:
    """A segment ready for tokenising.

    Attributes:
        kind: Tools, system or message.
        text: ASCII JSON, payload data emptied.
        markers: Breakpoints in order of position.
        payloads: Base64 payloads in order of position.
        role: A message's role, None for other kinds and unusable roles.
        content_types: Sorted distinct types of a message's content blocks; a plain string counts as `text`.
        n_content_blocks: Tools, system blocks or content blocks: the positions that look-back counts.
        billing_churn: The billing header's values that were zeroed, as sent; None without such a header.
    """

    kind: SegmentKind
    text: str
    markers: tuple[Marker, ...]
    payloads: tuple[Payload, ...]
    role: str | None
    content_types: tuple[str, ...]
    n_content_blocks: int
    billing_churn: str | None


@dataclass(slots=True)
class _Cleaning:
    """What the recursive walk over one segment finds."""

    kind: SegmentKind
    salt: bytes
    keep_billing_header: bool
    markers: list[Marker] = field(default_factory=list)
    payloads: list[Payload] = field(default_factory=list)
    churn: list[str] = field(default_factory=list)

    def clean(self, value: Any, path: tuple[str | int, ...] = ()) -> Any:  # noqa: ANN401  (JSON is any type)
        if isinstance(value, dict):
            self._note_marker(value.get("cache_control"), path)
            value = self._without_payload(value)
            return {k: self.clean(v, (*path, k)) for k, v in value.items() if k not in REMOVED_KEYS}
        if isinstance(value, list):
            return [self.clean(item, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, str) and self._is_billing_header(value, path):
            return self._without_churn(value)
        return value

    def _note_marker(self, control: object, path: tuple[str | int, ...]) -> None:
        """Only blocks carry breakpoints: a key of that name deeper down is somebody's data."""
        position = path[1:] if self.kind is SegmentKind.MESSAGE and path[:1] == ("content",) else path
        if not isinstance(control, dict) or not position or not isinstance(position[0], int):
            return
        nested_result = self.kind is SegmentKind.MESSAGE and len(position) == 3 and position[1] == "content"
        if len(position) == 1 or nested_result:
            self.markers.append(Marker(position[0], "1h" if control.get("ttl") == "1h" else "5m"))

    def _without_payload(self, value: dict[str, Any]) -> dict[str, Any]:
        data = value.get("data")
        if value.get("type") != "base64" or not isinstance(data, str):
            return value
        self.payloads.append(read_payload(self.salt, str(value.get("media_type")), data))
        return {**value, "data": ""}

    def _is_billing_header(self, value: str, path: tuple[str | int, ...]) -> bool:
        is_block_text = path == () or (len(path) == 2 and path[1] == "text")
        return self.kind is SegmentKind.SYSTEM and is_block_text and value.startswith(BILLING_HEADER_PREFIX)

    def _without_churn(self, header: str) -> str:
        self.churn.append(_churn(header))
        return header if self.keep_billing_header else _zeroed(header)


def serialise(value: object) -> str:
    """JSON as the token counts define it: compact, ASCII, keys in the order they came."""
    return _encoder.encode(value)


def normalise(kind: SegmentKind, raw: bytes, salt: bytes, *, keep_billing_header: bool = False) -> NormalisedSegment:
    """Normalise one segment.

    Args:
        kind: What the segment is.
        raw: The JSON as sent, UTF-8.
        salt: Secret of the store, for payload digests.
        keep_billing_header: Leave the billing header as it is.

    Raises:
        ValueError: `raw` is not JSON.
        RecursionError: `raw` is nested deeper than Python's stack allows.
    """
    sent = raw.decode("utf-8", "surrogatepass")
    value = json.loads(sent)
    cleaning = _Cleaning(kind, salt, keep_billing_header)
    text = None if _needs_cleaning(sent) else serialise(value)
    if text is None or _needs_cleaning(text):  # serialising shows words that were sent with escapes
        text = serialise(cleaning.clean(value))
    message = value if kind is SegmentKind.MESSAGE and isinstance(value, dict) else {}
    blocks = message.get("content") if kind is SegmentKind.MESSAGE else value
    return NormalisedSegment(
        kind=kind,
        text=text,
        markers=tuple(cleaning.markers),
        payloads=tuple(cleaning.payloads),
        role=type_name(message["role"]) if isinstance(message.get("role"), str) else None,
        content_types=_content_types(blocks) if kind is SegmentKind.MESSAGE else (),
        n_content_blocks=len(blocks) if isinstance(blocks, list) else 1,
        billing_churn=" ".join(cleaning.churn) if cleaning.churn else None,
    )


def without_markers(raw: bytes, n_markers: int) -> bytes | None:
    """A message as it will be sent once its breakpoints have moved on; None if that is not plain to see.

    Quotes inside JSON strings are escaped, so the key's bytes are only ever the key.
    """
    if raw.count(_MARKER_KEY) != n_markers:
        return None
    for _ in range(n_markers):
        start = raw.find(_MARKER_KEY)
        found = _MARKER.match(raw, start)
        if found is None:
            return None
        end = found.end()
        if raw[end : end + 1] == b",":
            raw = raw[:start] + raw[end + 1 :]
        elif raw[start - 1 : start] == b",":
            raw = raw[: start - 1] + raw[end:]
        else:
            return None
    return raw


def split_billing_churn(raw: bytes) -> tuple[bytes, str | None]:
    """Zero the billing header's changing values in a system segment as sent, without parsing it.

    Turns differ in them alone, so the result is the same bytes turn after turn. Normalising it gives the same text as
    normalising the original. Anything unusual (no header, two of them, escapes in it) is left to `normalise`.

    Returns:
        The bytes with zeros and the values as sent, or the bytes as they are and None.
    """
    prefix = BILLING_HEADER_PREFIX.encode()
    start = raw.find(b'"text":"' + prefix, 0, _HEADER_IS_WITHIN) + len(b'"text":"')
    end = raw.find(b'"', start)
    header = raw[start:end]
    if not header.startswith(prefix) or b"\\" in header or not header.isascii() or raw.find(prefix, end) >= 0:
        return raw, None
    text = header.decode()
    return raw[:start] + _zeroed(text).encode() + raw[end:], _churn(text)


def _churn(header: str) -> str:
    return ";".join(match.group() for match in _BILLING_CHURN.finditer(header))


def _zeroed(header: str) -> str:
    return _BILLING_CHURN.sub(lambda match: f"{match[1]}={'0' * len(match[2])}", header)


def _needs_cleaning(text: str) -> bool:
    return any(word in text for word in _NEEDS_CLEANING)


def _content_types(content: object) -> tuple[str, ...]:
    if isinstance(content, str):
        return ("text",)
    return block_types(content if isinstance(content, list) else ())


def block_types(blocks: Iterable[object]) -> tuple[str, ...]:
    """Sorted distinct `type` values of content blocks."""
    types = (block.get("type") for block in blocks if isinstance(block, dict))
    return tuple(sorted({type_name(kind) for kind in types if isinstance(kind, str)}))


def type_name(text: str) -> str:
    """A name from the API's vocabulary: types, roles, reasons. What can't be one is `other`: it could be any text."""
    return text if _TYPE_NAME.fullmatch(text) else OTHER_TYPE


def well_formed(text: str) -> str:
    """Text that tables can hold: JSON may escape half a surrogate pair, which becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
