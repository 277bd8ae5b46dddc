"""From a segment as it was sent to the text whose tokens count.

A request is tools, system, then messages: one segment each. Normalising removes `cache_control` and `signature` at
every depth, takes base64 payloads out, zeroes the values of the billing header that change per turn while the API's
own cache ignores them, and serialises with `json.dumps(obj, separators=(",", ":"))`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from kv_pipeline.core.json_text import parse, serialise
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
_NEEDS_CLEANING: Final = (_MARKER_KEY, b'"signature"', b'"base64"', BILLING_HEADER_PREFIX.encode())
_ESCAPE: Final = b"\\u"
"""The one escape of JSON that can stand for any character of those words."""


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
    value, may_have_floats = parse(raw)
    markers: tuple[Marker, ...] = ()
    payloads: list[Payload] = []
    churn: str | None = None
    text = None if _needs_cleaning(raw) else serialise(value, may_have_floats=may_have_floats)
    # Serialising shows words that were escaped.
    if text is None or (_ESCAPE in raw and _needs_cleaning(text.encode())):
        markers = tuple(_markers(kind, value))
        if kind is SegmentKind.SYSTEM:
            value, churn = _without_churn(value, keep_billing_header)
        _clean(value, salt, payloads)
        text = serialise(value, may_have_floats=may_have_floats)
    message = value if kind is SegmentKind.MESSAGE and isinstance(value, dict) else {}
    blocks = message.get("content") if kind is SegmentKind.MESSAGE else value
    return NormalisedSegment(
        kind=kind,
        text=text,
        markers=markers,
        payloads=tuple(payloads),
        role=type_name(message["role"]) if isinstance(message.get("role"), str) else None,
        content_types=_content_types(blocks) if kind is SegmentKind.MESSAGE else (),
        n_content_blocks=len(blocks) if isinstance(blocks, list) else 1,
        billing_churn=churn,
    )


def _markers(kind: SegmentKind, value: Any) -> Iterator[Marker]:  # noqa: ANN401  (JSON is any type)
    """Only blocks carry breakpoints, and what results hold: a key of that name deeper down is somebody's data."""
    is_message = kind is SegmentKind.MESSAGE
    blocks = value.get("content") if is_message and isinstance(value, dict) else value
    for index, block in enumerate(blocks if isinstance(blocks, list) else ()):
        if isinstance(block, dict):
            for holder in [block, *_content(block)] if is_message else [block]:
                control = holder.get("cache_control") if isinstance(holder, dict) else None
                if isinstance(control, dict):
                    yield Marker(index, "1h" if control.get("ttl") == "1h" else "5m")


def _content(block: dict[str, Any]) -> list[Any]:
    content = block.get("content")
    if isinstance(content, dict):
        return [value for key, value in content.items() if key not in REMOVED_KEYS]
    return content if isinstance(content, list) else []


def _clean(value: Any, salt: bytes, payloads: list[Payload]) -> None:  # noqa: ANN401  (JSON is any type)
    """Remove keys and take payloads out, in place and in order of position."""
    below: Iterable[Any] = value if isinstance(value, list) else ()
    if isinstance(value, dict):
        for key in REMOVED_KEYS:
            value.pop(key, None)
        data = value.get("data")
        if isinstance(data, str) and value.get("type") == "base64":
            payloads.append(read_payload(salt, str(value.get("media_type")), data))
            value["data"] = ""
        below = value.values()
    for item in below:
        if isinstance(item, (dict, list)):
            _clean(item, salt, payloads)


def _without_churn(system: Any, keep: bool) -> tuple[Any, str | None]:  # noqa: ANN401  (JSON is any type)
    """A system prompt with billing headers zeroed, those of its blocks in place, and their values as sent."""
    if _is_header(system):
        zeroed, churn = _zeroed(system)
        return system if keep else zeroed, churn
    items = system.items() if isinstance(system, dict) else enumerate(system if isinstance(system, list) else ())
    sent = []
    for key, block in items:
        if isinstance(block, dict) and _is_header(block.get("text")) and key not in REMOVED_KEYS:
            zeroed, churn = _zeroed(block["text"])
            block["text"] = block["text"] if keep else zeroed
            sent.append(churn)
    return system, " ".join(sent) if sent else None


def _is_header(text: object) -> bool:
    return isinstance(text, str) and text.startswith(BILLING_HEADER_PREFIX)


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
    zeroed, churn = _zeroed(text)
    return b"".join((raw[:start], zeroed.encode(), raw[end:])), churn


def _zeroed(header: str) -> tuple[str, str]:
    """A billing header with zeros for its changing values, and these as sent."""
    sent = []

    def zeros(match: re.Match[str]) -> str:
        sent.append(match.group())
        return f"{match[1]}={'0' * len(match[2])}"

    return _BILLING_CHURN.sub(zeros, header), ";".join(sent)


def _needs_cleaning(text: bytes) -> bool:
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
