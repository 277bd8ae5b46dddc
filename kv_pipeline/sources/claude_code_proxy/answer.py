"""The response half of a row: how the proxy wraps an answer.

The proxy's stored `body` of a streamed answer is incomplete (its stop reason can be empty and tool calls are missing),
so streamed answers are read from the server-sent events.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kv_pipeline.sources.anthropic_messages.answer import (
    Answer,
    Message,
    answer_of,
    load_json,
    message_of_body,
    message_of_events,
    seconds_of_ms,
    status_of,
)
from kv_pipeline.sources.times import parse_utc


def parse_answer(raw: bytes | None) -> Answer:
    """Read a recorded response.

    Raises:
        ValueError: `raw` is not a JSON object.
    """
    if raw is None:
        return Answer()
    response = load_json(raw)
    if response is None:
        return Answer()
    if not isinstance(response, dict):
        raise ValueError("the response is not a JSON object")
    return answer_of(
        _message(response),
        status_of(response.get("statusCode")),
        response.get("headers"),
        api_time_s=seconds_of_ms(response.get("responseTime")),
        completed_at_utc=_completed(response.get("completedAt")),
    )


def _message(response: Mapping[str, Any]) -> Message:
    chunks = response.get("streamingChunks")
    if isinstance(chunks, list) and chunks:
        return message_of_events(chunk for chunk in chunks if isinstance(chunk, str))
    return message_of_body(response.get("body"))


def _completed(value: object) -> datetime | None:
    try:
        return parse_utc(value) if isinstance(value, str) else None
    except ValueError:
        return None
