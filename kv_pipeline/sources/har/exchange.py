"""An entry of a HAR file: the request's body, what the response says, and the few headers that are of use.

Headers hold credentials. Of a request's, the client's session and agent id are read; of a response's, its id and the
time the API took. Nothing else leaves this module.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from kv_pipeline.core.normalise import well_formed
from kv_pipeline.sources.anthropic_messages.answer import (
    Answer,
    answer_of,
    load_json,
    message_of_text,
    seconds_of_ms,
    status_of,
)
from kv_pipeline.sources.times import parse_utc

_USEFUL: Final = frozenset(
    {
        "request-id",
        "server-timing",
        "x-envoy-upstream-service-time",
        "x-claude-code-session-id",
        "x-claude-code-agent-id",
    }
)
_MAX_BODY_BYTES: Final = 256 * 1024 * 1024
_COMPRESSED: Final = (b"\x1f\x8b", b"\x78")
"""How gzip and deflate begin, and no JSON and no event stream."""
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
"""Bytes that neither JSON nor event streams have, and other compressions soon do."""
_LOOKED_AT_BYTES: Final = 4096
_GZIP_OR_DEFLATE: Final = zlib.MAX_WBITS | 32


class Exchange:
    """One entry.

    Args:
        raw: Its JSON.

    Raises:
        ValueError: It is no JSON object.
        RecursionError: It is nested too deeply.
    """

    def __init__(self, raw: bytes) -> None:
        value = load_json(raw)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        self._entry = value
        self.request = _object(value.get("request"))
        self._response = _object(value.get("response"))
        self._request_headers = _headers(self.request)
        self._headers = _headers(self._response)
        self.body = _body(_object(_object(self.request).get("postData")))
        self._answer = _body(_object(_object(self._response).get("content")))

    @property
    def url(self) -> object:
        """Where the request went."""
        return self.request.get("url") if self.request else None

    @property
    def request_id(self) -> str | None:
        """The API's id of the request."""
        return self._headers.get("request-id")

    @property
    def session_id(self) -> str | None:
        """The client's session, if a header names it."""
        return self._request_headers.get("x-claude-code-session-id")

    @property
    def agent_id(self) -> str | None:
        """The client's sub-agent, if a header names it."""
        return self._request_headers.get("x-claude-code-agent-id")

    @property
    def payload_bytes(self) -> int:
        """Bytes of both bodies."""
        return len(self.body or b"") + len(self._answer or b"")

    @property
    def is_response_lost(self) -> bool:
        """Whether there was a response of which no text was recorded."""
        return bool(self._status) and self._answer is None

    @property
    def _status(self) -> int | None:
        """None for the 0 of requests that were blocked or broken off."""
        return status_of(_object(self._response).get("status")) or None

    def requested_at(self) -> datetime:
        """When the request was sent.

        Raises:
            ValueError: There is no such time.
        """
        started = self._entry.get("startedDateTime")
        return parse_utc(started if isinstance(started, str) else "")

    def answer(self, requested_at_utc: datetime) -> Answer:
        """What the response says; an HTTP error needs no text for that."""
        status = self._status
        if status is None or (self._answer is None and status < 400):
            return Answer()
        api_time_s = seconds_of_ms(self._entry.get("time"))
        completed = None if api_time_s is None else _later(requested_at_utc, api_time_s)
        message = message_of_text((self._answer or b"").decode("utf-8", "replace"))
        answer = answer_of(message, status, self._headers, api_time_s, completed)
        waited_s = seconds_of_ms(_object(self._entry.get("timings")).get("wait"))
        return answer if answer.ttft_s is not None else answer._replace(ttft_s=waited_s)


def _later(at: datetime, seconds: float) -> datetime | None:
    try:
        return at + timedelta(seconds=seconds)
    except OverflowError:
        return None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _headers(holder: Mapping[str, Any]) -> Mapping[str, str]:
    """The useful ones by lower-case name; the first of a name counts."""
    found: dict[str, str] = {}
    listed = holder.get("headers")
    for header in listed if isinstance(listed, list) else ():
        name, value = _object(header).get("name"), _object(header).get("value")
        if isinstance(name, str) and isinstance(value, str) and value and name.lower() in _USEFUL:
            found.setdefault(name.lower(), well_formed(value))
    return found


def _body(holder: Mapping[str, Any]) -> bytes | None:
    """The text of a body; None if none was recorded, or it can't be decoded."""
    text = holder.get("text")
    if not isinstance(text, str) or not text:
        return None
    if holder.get("encoding") != "base64":
        return text.encode("utf-8", "surrogatepass")
    try:
        return _unzipped(base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError, zlib.error):
        return None


def _unzipped(raw: bytes) -> bytes:
    """Bodies that were recorded as sent may be compressed; a bound keeps small ones from filling memory.

    Raises:
        ValueError: It is compressed otherwise, or too long.
        zlib.error: It is damaged.
    """
    if not raw.startswith(_COMPRESSED):
        if _CONTROL.search(raw, 0, _LOOKED_AT_BYTES):
            raise ValueError("the body is no text")
        return raw
    unpacker = zlib.decompressobj(wbits=_GZIP_OR_DEFLATE)
    body = unpacker.decompress(raw, _MAX_BODY_BYTES)
    if unpacker.unconsumed_tail:
        raise ValueError("the body is too long")
    return body
