"""A line of a log: the parts of its request and its response as raw JSON, and what the response says.

Bodies stay bytes, so that what a request repeats of an earlier one is never parsed. Headers hold credentials: of those
of a request nothing is read, of those of a response only its id and the time that the API took.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from kv_pipeline.core.normalise import well_formed
from kv_pipeline.sources.anthropic_messages.answer import (
    Answer,
    Message,
    answer_of,
    load_json,
    message_of_body,
    message_of_text,
    plausible_seconds,
    status_of,
)
from kv_pipeline.sources.anthropic_messages.rows import MESSAGES_ENDPOINT, messages_endpoint
from kv_pipeline.sources.times import parse_utc

_Parts = Mapping[str, bytes]
_NULL: Final = b"null"
_REQUEST_ID: Final = "request-id"


class _WirePair(msgspec.Struct):
    request: dict[str, msgspec.Raw] | None = None
    response: dict[str, msgspec.Raw] | None = None


_pair_decoder: Final = msgspec.json.Decoder(_WirePair)
_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Pair(NamedTuple):
    """One line.

    Attributes:
        request: Raw JSON by key; None if the line has no request.
        response: The same of the response; None if the request was not answered.
        is_response_broken: Whether there is a response that is no JSON object.
        digest: The same for lines that repeat a pair.
    """

    request: _Parts | None
    response: _Parts | None
    is_response_broken: bool
    digest: bytes

    @property
    def body(self) -> bytes | None:
        """The request's body."""
        body = (self.request or {}).get("body", _NULL)
        return None if body == _NULL else body

    @property
    def payload_bytes(self) -> int:
        """Bytes of both bodies as recorded; nulls count nothing."""
        answer = self.response or {}
        return sum(len(part) for part in (self.body, answer.get("body"), answer.get("body_raw")) if part not in _EMPTY)


_EMPTY: Final = (None, _NULL)


def parse_pair(line: bytes) -> Pair:
    """Split a line.

    Raises:
        ValueError: It is no JSON object.
        RecursionError: It is nested too deeply.
    """
    try:
        wire = _pair_decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _parse_leniently(line)
    return _pair(_bytes(wire.request), _bytes(wire.response), is_response_broken=False)


def _parse_leniently(line: bytes) -> Pair:
    parts = _parts(line)
    request, response = parts.get("request", _NULL), parts.get("response", _NULL)
    try:
        answer, is_broken = (None if response == _NULL else _parts(response)), False
    except (ValueError, RecursionError):
        answer, is_broken = None, True
    return _pair(_parts(request) if request.startswith(b"{") else None, answer, is_response_broken=is_broken)


def _pair(request: _Parts | None, response: _Parts | None, *, is_response_broken: bool) -> Pair:
    digest = hashlib.blake2b(digest_size=16)
    for half in (request or {}, response or {}):
        for key, part in half.items():
            digest.update(b"%b %d:" % (key.encode("utf-8", "surrogatepass"), len(part)))
            digest.update(part)
        digest.update(b"\n")
    return Pair(request, response, is_response_broken, digest.digest())


def _bytes(parts: dict[str, msgspec.Raw] | None) -> _Parts | None:
    return None if parts is None else {key: bytes(part) for key, part in parts.items()}


def endpoint_of(request: _Parts) -> str | None:
    """The API path, without host and query, which may hold secrets; None if it is not that of messages."""
    url = _value(request, "url")
    return MESSAGES_ENDPOINT if url is None else messages_endpoint(url)


def time_of(parts: _Parts) -> datetime:
    """When a request was sent, or a response was complete: seconds since 1970, or a text as RFC 3339 has it.

    Raises:
        ValueError: There is no such time.
    """
    value = _value(parts, "timestamp")
    if isinstance(value, str):
        return parse_utc(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("the timestamp is no number")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError("the time lies outside the calendar") from error


def request_id_of(pair: Pair) -> str | None:
    """The API's id of the request, which comes with the answer."""
    headers = _value(pair.response or {}, "headers")
    values = (
        (value for key, value in headers.items() if key.lower() == _REQUEST_ID) if isinstance(headers, dict) else ()
    )
    value = next(iter(values), None)
    return well_formed(value) or None if isinstance(value, str) else None


def answer_of_pair(pair: Pair, requested_at_utc: datetime) -> Answer:
    """What the response says. Its timestamp is taken when the whole answer has been read."""
    if pair.response is None:
        return Answer()
    value = {key: _value(pair.response, key) for key in ("status_code", "headers", "body", "body_raw")}
    try:
        completed_at = time_of(pair.response)
    except ValueError:
        completed_at = None
    api_time_s = plausible_seconds((completed_at - requested_at_utc).total_seconds()) if completed_at else None
    message = _message(value["body_raw"] or value["body"])
    return answer_of(message, status_of(value["status_code"]), value["headers"], api_time_s, completed_at)


def _message(body: Any) -> Message:  # noqa: ANN401  (JSON is any type)
    return message_of_text(body) if isinstance(body, str) else message_of_body(body)


def _value(parts: _Parts, key: str) -> Any:  # noqa: ANN401  (JSON is any type)
    """A part's value; None where it is missing, or is text that is no Unicode, or is nested too deeply."""
    try:
        return load_json(parts.get(key, _NULL))
    except (ValueError, RecursionError):
        return None


def _parts(raw: bytes) -> _Parts:
    """A JSON object's values as raw JSON."""
    try:
        return {key: bytes(value) for key, value in _decoder.decode(raw).items()}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = json.loads(raw.decode("utf-8", "surrogatepass"))
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return {key: json.dumps(part).encode() for key, part in value.items()}
