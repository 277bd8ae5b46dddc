"""The fields of transcript records that requests are made of; content stays raw JSON."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kv_pipeline.sources.anthropic_messages.answer import load_json
from kv_pipeline.sources.lenient import Count, decode_leniently, usable

ABSENT: Final = msgspec.Raw(b"null")
UNUSABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_WANTED: Final = (b'"uuid"', b'"api-request', b'"fork-context-ref"', b'"assistant"', b'"user"')


class Message(msgspec.Struct):
    """`message` of a user or assistant record."""

    id: str | None = None
    role: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    content: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    diagnostics: msgspec.Raw = ABSENT
    context_management: msgspec.Raw = ABSENT


class Record(msgspec.Struct, rename="camel"):
    """One line of a transcript, as far as requests need it.

    `hash` to `request_digest` stand in `api-request-…` records, whose `message` is raw: see `RecordedMessage`.
    """

    type: str = ""
    subtype: str | None = None
    uuid: str | None = None
    parent_uuid: str | None = None
    parent_last_uuid: str | None = None
    timestamp: str | None = None
    version: str | None = None
    is_api_error_message: bool = False
    message: msgspec.Raw = ABSENT
    attachment: msgspec.Raw = ABSENT
    rendered: msgspec.Raw = ABSENT
    rendered_role: str | None = None
    request_id: str | None = None
    request_ref: str | None = None
    prompt_cache_requested: str | None = None
    id: str | None = None
    hash: str | None = None
    shape_hash: str | None = None
    shape: msgspec.Raw = ABSENT
    params: msgspec.Raw = ABSENT
    base: str | None = None
    keep: Count = 0
    tail: list[str] = []
    cache_control: msgspec.Raw = ABSENT
    request_digest: str | None = None


class Attachment(msgspec.Struct, rename="camel"):
    """`attachment` of a record of that type; the lists are those of a `prompt_snapshot`."""

    type: str = ""
    system_prompt: list[str] = []
    cli_prefix: str | None = None
    tools: msgspec.Raw = ABSENT


_decoder: Final = msgspec.json.Decoder(Record)
_message_decoder: Final = msgspec.json.Decoder(Message)


def is_wanted(line: bytes) -> bool:
    """Whether a line can matter to requests."""
    return any(word in line for word in _WANTED)


def decode_record(line: bytes) -> Record:
    """Read a line; fields of an unexpected type count as absent.

    Raises:
        msgspec.MsgspecError, RecursionError: It is not a JSON object.
    """
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError:
        return decode_leniently(line, Record)


def decode_message(raw: bytes) -> Message:
    """The message of a record; an empty one if it is no object."""
    try:
        return _message_decoder.decode(raw)
    except msgspec.ValidationError:
        value = value_of(raw)
        return usable(value, Message) if isinstance(value, dict) else Message()


def value_of(raw: bytes | msgspec.Raw) -> Any:  # noqa: ANN401  (JSON is any type)
    """A parsed value; None for what is no JSON, or is nested too deeply."""
    try:
        return load_json(bytes(raw))
    except (ValueError, RecursionError):
        return None
