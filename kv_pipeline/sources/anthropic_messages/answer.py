"""What a Messages API answer says: outcome, usage, content types, stop reason and what it tells of the cache.

A streamed answer is read from its server-sent events, where usage is split over `message_start` and `message_delta`.
How a log wraps the answer, and where it keeps times, is the business of each source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from kv_pipeline.core.normalise import block_types, type_name, well_formed
from kv_pipeline.schemas.requests import CLIENT_TOOLS, MISS_REASONS

_DURATION: Final = re.compile(r"\bdur=([0-9.]+)")
_OTHER: Final = "other"
_STATUS_ERROR: Final = 400
_MAX_STATUS: Final = 999
_MAX_TOKENS: Final = 2**40
"""More than any request can have; sums of such numbers still fit into a table."""
_MAX_SECONDS: Final = 10_000_000.0


class Usage(NamedTuple):
    """Billed tokens; None where the answer does not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None


class Answer(NamedTuple):
    """What a recorded response says; the defaults stand for a request without one."""

    outcome: str = "no_response"
    status_code: int | None = None
    message_id: str | None = None
    stop_reason: str | None = None
    output_types: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    usage: Usage = Usage()
    api_time_s: float | None = None
    ttft_s: float | None = None
    completed_at_utc: datetime | None = None
    cache_miss_reason: str | None = None
    cache_missed_input_tokens: int | None = None
    has_applied_edits: bool = False


@dataclass(slots=True)
class Message:
    """An answer's message, gathered from its body or its events."""

    message_id: object = None
    stop_reason: object = None
    blocks: list[object] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = False
    miss: dict[str, Any] | None = None
    has_applied_edits: bool = False

    def note_cache(self, holder: Mapping[str, Any]) -> None:
        """Take what a message or event says of the cache; what later events say replaces it, silence does not."""
        diagnostics, management = holder.get("diagnostics"), holder.get("context_management")
        miss = diagnostics.get("cache_miss_reason") if isinstance(diagnostics, dict) else None
        self.miss = miss if isinstance(miss, dict) else self.miss
        edits = management.get("applied_edits") if isinstance(management, dict) else None
        self.has_applied_edits |= isinstance(edits, list) and bool(edits)


def answer_of(
    message: Message,
    status_code: int | None,
    headers: object,
    api_time_s: float | None,
    completed_at_utc: datetime | None,
) -> Answer:
    """The answer that a message, the response's headers and the source's times make up."""
    return Answer(
        outcome=_outcome(status_code, message),
        status_code=status_code,
        message_id=_text(message.message_id),
        stop_reason=_named(message.stop_reason),
        output_types=block_types(message.blocks),
        tools=_tools(message.blocks),
        usage=_usage(message.usage),
        api_time_s=api_time_s,
        ttft_s=_ttft_s(headers),
        completed_at_utc=completed_at_utc,
        cache_miss_reason=_miss_reason(message.miss),
        cache_missed_input_tokens=_integer(message.miss.get("cache_missed_input_tokens")) if message.miss else None,
        has_applied_edits=message.has_applied_edits,
    )


def load_json(raw: bytes) -> Any:  # noqa: ANN401  (JSON is any type)
    """Parse JSON, fast where msgspec takes it.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return json.loads(raw.decode("utf-8", "surrogatepass"))


def _outcome(status: int | None, message: Message) -> str:
    if status is not None and status >= _STATUS_ERROR:
        return "error"
    if message.is_complete:
        return "ok"
    return "aborted" if message.message_id is not None else "error"


def message_of_body(body: object) -> Message:
    """The message that is a response's body; an empty one if it is none."""
    if not isinstance(body, dict):
        return Message()
    content, usage = body.get("content"), body.get("usage")
    message = Message(
        message_id=body.get("id"),
        stop_reason=body.get("stop_reason"),
        blocks=content if isinstance(content, list) else [],
        usage=usage if isinstance(usage, dict) else {},
        is_complete=body.get("id") is not None,
    )
    message.note_cache(body)
    return message


def message_of_text(text: str) -> Message:
    """The message that a response's text is: a body, or server-sent events."""
    if not text.lstrip().startswith("{"):
        return message_of_events(text.split("\n"))
    try:
        return message_of_body(load_json(text.encode("utf-8", "surrogatepass")))
    except (ValueError, RecursionError):
        return Message()


def message_of_events(lines: Iterable[str]) -> Message:
    """The message that lines of server-sent events tell of; lines that can't be used are passed over."""
    message = Message()
    for event in _events(lines):
        match event.get("type"):
            case "message_start":
                start = event.get("message")
                if isinstance(start, dict):
                    message.message_id = start.get("id")
                    _update_usage(message, start.get("usage"))
                    message.note_cache(start)
            case "content_block_start":
                message.blocks.append(event.get("content_block"))
            case "message_delta":
                delta = event.get("delta")
                if isinstance(delta, dict):
                    message.note_cache(delta)
                    if delta.get("stop_reason") is not None:
                        message.stop_reason, message.is_complete = delta["stop_reason"], True
                message.note_cache(event)
                _update_usage(message, event.get("usage"))
            case "message_stop":
                message.is_complete = True
    return message


def _events(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Events of `data:` lines, less half-written ones and the many that say nothing here."""
    for line in lines:
        beginning = line[:64]
        if ("message_" in beginning or "content_block_start" in beginning) and beginning.startswith("data:"):
            try:
                event = load_json(line[5:].encode("utf-8", "surrogatepass"))
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event


def _tools(blocks: Iterable[object]) -> tuple[str, ...]:
    """Tools that are called, by name if every client has them."""
    calls = [block for block in blocks if isinstance(block, dict) and block.get("type") == "tool_use"]
    named = (name if isinstance(name := call.get("name"), str) and name in CLIENT_TOOLS else _OTHER for call in calls)
    return tuple(sorted(set(named)))


def _update_usage(message: Message, usage: object) -> None:
    """Later events say more: their values replace earlier ones, except nulls."""
    if isinstance(usage, dict):
        message.usage.update({key: value for key, value in usage.items() if value is not None})


def _usage(usage: Mapping[str, Any]) -> Usage:
    if not usage:
        return Usage()
    created = _integer(usage.get("cache_creation_input_tokens")) or 0
    split = usage.get("cache_creation")
    one_hour = _integer(split.get("ephemeral_1h_input_tokens")) or 0 if isinstance(split, dict) else 0
    return Usage(
        input_tokens=_integer(usage.get("input_tokens")) or 0,
        output_tokens=_integer(usage.get("output_tokens")) or 0,
        cache_read_tokens=_integer(usage.get("cache_read_input_tokens")) or 0,
        cache_write_5m_tokens=max(0, created - one_hour),
        cache_write_1h_tokens=one_hour,
    )


def _miss_reason(miss: Mapping[str, Any] | None) -> str | None:
    reason = None if miss is None else miss.get("type")
    if not isinstance(reason, str):
        return None
    return reason if reason in MISS_REASONS else _OTHER


def _ttft_s(headers: object) -> float | None:
    if not isinstance(headers, dict):
        return None
    lower = {key.lower(): value for key, value in headers.items()}
    timing = _DURATION.search(_first(lower.get("server-timing")))
    if timing:
        return seconds_of_ms(timing[1])
    return seconds_of_ms(_first(lower.get("x-envoy-upstream-service-time")) or None)


def _first(header: object) -> str:
    """Go stores a header as a list of values."""
    value = header[0] if isinstance(header, list) and header else header
    return value if isinstance(value, str) else ""


def seconds_of_ms(milliseconds: object) -> float | None:
    """A duration in seconds; None for what can't be one."""
    try:
        return plausible_seconds(float(milliseconds) / 1000)  # type: ignore[arg-type]  # float() refuses what is none
    except (TypeError, ValueError, OverflowError):
        return None


def plausible_seconds(value: float) -> float | None:
    """A duration in seconds, to the microsecond; None if it is below 0, or endless."""
    return round(value, 6) if 0 <= value < _MAX_SECONDS else None


def status_of(value: object) -> int | None:
    """An HTTP status; None for what can't be one."""
    return _integer(value, _MAX_STATUS)


def _integer(value: object, maximum: int = _MAX_TOKENS) -> int | None:
    """A count; a float that is a whole number counts as one, anything implausible as not said."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum else None


def _named(value: object) -> str | None:
    return type_name(value) if isinstance(value, str) and value else None


def _text(value: object) -> str | None:
    return well_formed(value) if isinstance(value, str) and value else None
