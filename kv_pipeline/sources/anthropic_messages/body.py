"""The request half of a row: which bytes of the body are tools, system and messages.

Only the outermost structure is parsed; segments stay raw JSON, so a message that a thousand requests repeat is parsed
once. msgspec scans at memory speed but is stricter than `json.loads` (NaN, lone surrogates), which therefore has the
last word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from kv_pipeline.core.normalise import well_formed
from kv_pipeline.errors import InputError

_ABSENT: Final = msgspec.Raw(b"null")


class Options(NamedTuple):
    """Request options that can cost the cache when they change, as canonical JSON; None where absent or null.

    `thinking` has the effort with it, wherever the client puts that, since the two are changed by the same switch.
    """

    tool_choice: bytes | None = None
    thinking: bytes | None = None
    speed: bytes | None = None
    context_management: bytes | None = None


class Body(NamedTuple):
    """A request's parts as raw JSON; None where the key is missing or null."""

    model: str | None
    tools: bytes | None
    system: bytes | None
    messages: list[bytes]
    is_streaming: bool
    automatic_cache_ttl: str | None
    options: Options = Options()
    session_id: str | None = None


class _WireBody(msgspec.Struct):
    messages: list[msgspec.Raw]
    model: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    cache_control: msgspec.Raw = _ABSENT
    tool_choice: msgspec.Raw = _ABSENT
    thinking: msgspec.Raw = _ABSENT
    output_config: msgspec.Raw = _ABSENT
    effort: msgspec.Raw = _ABSENT
    speed: msgspec.Raw = _ABSENT
    context_management: msgspec.Raw = _ABSENT
    metadata: msgspec.Raw = _ABSENT


_SESSION: Final = re.compile(r"_session_([0-9A-Za-z-]+)$")
_OPTION_KEYS: Final = ("tool_choice", "thinking", "output_config", "effort", "speed", "context_management")
_decoder: Final = msgspec.json.Decoder(_WireBody)


def parse_body(raw: bytes | None, database_id: str, row_id: int) -> Body:
    """Split a recorded request body.

    Raises:
        InputError: The body is missing, not JSON, not an object, or has no list of messages.
    """
    if raw is None:
        raise _unusable("no_body", "the body is NULL", database_id, row_id)
    try:
        wire = _decoder.decode(raw)
        model, control = _value(bytes(wire.model)), _value(bytes(wire.cache_control))
        session_id = _session_of_raw(bytes(wire.metadata))
        options = _options_of_raw(
            bytes(wire.tool_choice),
            bytes(wire.thinking),
            bytes(wire.output_config),
            bytes(wire.effort),
            bytes(wire.speed),
            bytes(wire.context_management),
        )
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _parse_leniently(raw, database_id, row_id)
    return Body(
        model=_model(model),
        tools=_present(wire.tools),
        system=_present(wire.system),
        messages=[bytes(message) for message in wire.messages],
        is_streaming=bytes(wire.stream) == b"true",
        automatic_cache_ttl=_ttl(control),
        options=options,
        session_id=session_id,
    )


def options_of(params: Mapping[str, object]) -> Options:
    """The options among a request's parameters."""
    return _options(*map(params.get, _OPTION_KEYS))


def not_json(error: Exception, database_id: str, row_id: int) -> InputError:
    """What to tell of a body, or a part of one, that `json.loads` refuses."""
    if isinstance(error, RecursionError):
        return _unusable("body_too_deep", "the body is nested too deeply", database_id, row_id)
    if isinstance(error, UnicodeError):
        return _unusable("body_not_utf8", "the body has bytes that are not UTF-8", database_id, row_id)
    found = "the body is not JSON (an error text, cut off, or a number of over 4,300 digits)"
    return _unusable("body_not_json", found, database_id, row_id)


def _parse_leniently(raw: bytes, database_id: str, row_id: int) -> Body:
    try:
        value = json.loads(raw.decode("utf-8", "surrogatepass"))
        return _split(value, database_id, row_id)
    except (ValueError, RecursionError) as error:
        raise not_json(error, database_id, row_id) from error


def _split(value: object, database_id: str, row_id: int) -> Body:
    if not isinstance(value, dict):
        raise _unusable("body_not_object", f"the body is a JSON {type(value).__name__}", database_id, row_id)
    if not isinstance(value.get("messages"), list):
        raise _unusable("no_messages", "the body has no list of messages", database_id, row_id)
    return Body(
        model=_model(value.get("model")),
        tools=_dumped(value.get("tools")),
        system=_dumped(value.get("system")),
        messages=[json.dumps(message).encode() for message in value["messages"]],
        is_streaming=value.get("stream") is True,
        automatic_cache_ttl=_ttl(value.get("cache_control")),
        options=_options(*map(value.get, _OPTION_KEYS)),
        session_id=_session_id(value.get("metadata")),
    )


@lru_cache(maxsize=64)
def _options_of_raw(*raw: bytes) -> Options:
    """The same few options come with every request of a conversation, so they are parsed once."""
    return _options(*map(json.loads, raw))


def _options(
    tool_choice: object,
    thinking: object,
    output_config: object,
    effort: object,
    speed: object,
    context_management: object,
) -> Options:
    in_config = output_config.get("effort") if isinstance(output_config, dict) else None
    given = {"thinking": thinking, "output_config.effort": in_config, "effort": effort}
    switches = {name: value for name, value in given.items() if value is not None}
    return Options(
        tool_choice=_canonical(tool_choice),
        thinking=_canonical(switches or None),
        speed=_canonical(speed),
        context_management=_canonical(context_management),
    )


@lru_cache(maxsize=64)
def _session_of_raw(raw: bytes) -> str | None:
    return _session_id(json.loads(raw))


def _session_id(metadata: object) -> str | None:
    """The client's session, which newer clients put as JSON into `metadata.user_id` and older ones at its end."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if isinstance(user, str) and user.lstrip().startswith("{"):
        user = _object(user)
    if isinstance(user, dict):
        session = user.get("session_id")
        return well_formed(session) or None if isinstance(session, str) else None
    named = _SESSION.search(user) if isinstance(user, str) else None
    return named[1] if named else None


def _object(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _canonical(value: object) -> bytes | None:
    return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _unusable(reason: str, found: str, database_id: str, row_id: int) -> InputError:
    return InputError(reason, database_id, found, "The row is left out; the others are used.", row_id)


def _present(raw: msgspec.Raw) -> bytes | None:
    value = bytes(raw)
    return None if value == b"null" else value


def _dumped(value: object) -> bytes | None:
    return None if value is None else json.dumps(value).encode()


@lru_cache(maxsize=64)
def _value(raw: bytes) -> Any:  # noqa: ANN401  (JSON is any type)
    return json.loads(raw)


def _model(value: object) -> str | None:
    return well_formed(value) if isinstance(value, str) else None


def _ttl(control: object) -> str | None:
    if not isinstance(control, dict):
        return None
    return "1h" if control.get("ttl") == "1h" else "5m"
