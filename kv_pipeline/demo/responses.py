"""Responses as the demo API sends them and as the proxy stores them."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import formatdate

from kv_pipeline.demo.prompt_cache import Usage
from kv_pipeline.demo.wire import Json, compact

_DELTA_CHARS = 160


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answers.

    Attributes:
        contents: Its content objects, in API key order.
        stop_reason: Why it stopped.
        tokens: Its length as billed.
    """

    contents: tuple[Json, ...]
    stop_reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """An answered request: identities, bill and timing (milliseconds since the epoch)."""

    message_id: str
    request_id: str
    model: str
    usage: Usage
    at_ms: int
    first_byte_ms: int
    end_ms: int


def usage_json(usage: Usage, output_tokens: int | None = None) -> Json:
    """Usage as the API reports it."""
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.write_tokens,
        "cache_read_input_tokens": usage.read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.write_5m_tokens,
            "ephemeral_1h_input_tokens": usage.write_1h_tokens,
        },
        "output_tokens": usage.output_tokens if output_tokens is None else output_tokens,
        "service_tier": "standard",
    }


def message_json(exchange: Exchange, reply: Reply) -> Json:
    """The whole message, as a non-streaming response carries it."""
    head = {"id": exchange.message_id, "type": "message", "role": "assistant", "model": exchange.model}
    end = {"stop_reason": reply.stop_reason, "stop_sequence": None, "usage": usage_json(exchange.usage)}
    return {**head, "content": list(reply.contents), **end}


def stream_lines(exchange: Exchange, reply: Reply, *, is_aborted: bool) -> list[str]:
    """The `data:` lines of a streamed response; an aborted one ends inside its first block."""
    events = [_message_start(exchange), {"type": "ping"}]
    for index, content in enumerate(reply.contents):
        events += _block_events(index, content)
    if is_aborted:
        events = events[:4]
    else:
        events += [_message_delta(exchange, reply), {"type": "message_stop"}]
    return [f"data: {compact(event)}" for event in events]


def stored_stream(exchange: Exchange, reply: Reply, lines: list[str], *, keeps_stop: bool) -> Json:
    """A streamed response in the proxy's form.

    Args:
        exchange: The answered request.
        reply: What was answered.
        lines: The `data:` lines received.
        keeps_stop: Whether the proxy caught the end of the message; the older one never does.
    """
    body = {
        "content": None,
        "id": exchange.message_id,
        "model": exchange.model,
        "role": "assistant",
        "stop_reason": reply.stop_reason if keeps_stop else "",
        "type": "message",
        "usage": _stored_usage(exchange.usage),
    }
    headers = _headers(exchange, "text/event-stream")
    return _stored(200, headers, exchange, is_streaming=True, body=body, streamingChunks=lines)


def stored_message(exchange: Exchange, reply: Reply) -> Json:
    """A non-streaming response in the proxy's form."""
    body = message_json(exchange, reply)
    headers = {"Content-Length": [str(len(compact(body).encode()))], **_headers(exchange, "application/json")}
    return _stored(200, headers, exchange, is_streaming=False, body=body)


def stored_overload(exchange: Exchange) -> Json:
    """A refused request (status 529) in the proxy's form."""
    text = compact({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    headers = {
        "Content-Length": [str(len(text))],
        "Content-Type": ["application/json"],
        "Date": [_http_date(exchange.at_ms)],
        "Retry-After": ["1"],
        "X-Should-Retry": ["true"],
    }
    return _stored(529, headers, exchange, is_streaming=True, bodyText=text)


def _stored(status: int, headers: Json, exchange: Exchange, *, is_streaming: bool, **content: object) -> Json:
    """Fields in the order of the proxy's struct; the proxy adds `completedAt`, as it knows its offset."""
    first: Json = {name: content[name] for name in ("body", "bodyText") if name in content}
    last: Json = {name: content[name] for name in ("streamingChunks",) if name in content}
    elapsed = {"responseTime": exchange.end_ms - exchange.at_ms}
    return {"statusCode": status, "headers": headers, **first, **elapsed, **last, "isStreaming": is_streaming}


def _stored_usage(usage: Usage) -> Json:
    """The proxy's struct drops zeros of the cache fields and does not know the lifetimes."""
    cache = {"cache_creation_input_tokens": usage.write_tokens, "cache_read_input_tokens": usage.read_tokens}
    known = {name: tokens for name, tokens in cache.items() if tokens}
    tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    return {**tokens, **known, "service_tier": "standard"}


def _headers(exchange: Exchange, content_type: str) -> Json:
    """Response headers; the time to the first byte stands in `Server-Timing`."""
    return {
        "Content-Type": [content_type],
        "Date": [_http_date(exchange.first_byte_ms)],
        "Request-Id": [exchange.request_id],
        "Server-Timing": [f"x-originResponse;dur={exchange.first_byte_ms - exchange.at_ms}"],
    }


def _http_date(at_ms: int) -> str:
    return formatdate(at_ms // 1000, usegmt=True)


def _message_start(exchange: Exchange) -> Json:
    head = {"id": exchange.message_id, "type": "message", "role": "assistant", "model": exchange.model}
    usage = usage_json(exchange.usage, output_tokens=1)
    empty: Json = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    return {"type": "message_start", "message": {**head, **empty}}


def _message_delta(exchange: Exchange, reply: Reply) -> Json:
    usage = usage_json(exchange.usage)
    del usage["service_tier"], usage["cache_creation"]
    delta = {"stop_reason": reply.stop_reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, "usage": usage}


def _block_events(index: int, content: Json) -> list[Json]:
    """Start, deltas and stop of one content block."""
    start, deltas = _STREAMED[content["type"]](content)
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _pieces(text: str) -> list[str]:
    return [text[at : at + _DELTA_CHARS] for at in range(0, len(text), _DELTA_CHARS)]


def _streamed_text(content: Json) -> tuple[Json, list[Json]]:
    return {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in _pieces(content["text"])]


def _streamed_thinking(content: Json) -> tuple[Json, list[Json]]:
    deltas: list[Json] = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(content["thinking"])]
    deltas.append({"type": "signature_delta", "signature": content["signature"]})
    return {"type": "thinking", "thinking": "", "signature": ""}, deltas


def _streamed_tool_use(content: Json) -> tuple[Json, list[Json]]:
    start = {"type": "tool_use", "id": content["id"], "name": content["name"], "input": {}}
    pieces = _pieces(compact(content["input"]))
    return start, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]


_STREAMED = {"text": _streamed_text, "thinking": _streamed_thinking, "tool_use": _streamed_tool_use}
