"""Reading JSON objects into structs where a field of an unexpected type counts as absent."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, TypeVar, get_args

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def decode_leniently(raw: bytes, struct: type[_Struct]) -> _Struct:
    """Read a JSON object, with defaults for fields of an unexpected type.

    Raises:
        msgspec.MsgspecError, RecursionError: It is not a JSON object.
    """
    value = msgspec.json.decode(raw)
    if not isinstance(value, dict):
        raise msgspec.DecodeError("not a JSON object")
    return usable(value, struct)


def usable(value: dict[str, Any], struct: type[_Struct]) -> _Struct:
    """The struct that a parsed object makes up, with defaults for fields of an unexpected type."""
    known = {field.name: _field(value[field.encode_name], field.type)
             for field in _fields(struct) if field.encode_name in value}  # fmt: skip
    return struct(**{name: found for name, found in known.items() if found is not None})


@lru_cache(maxsize=64)
def _fields(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Known from then on: it compiles the annotations anew each time."""
    return msgspec.structs.fields(struct)


def _field(value: object, kind: Any) -> object:  # noqa: ANN401  (a type annotation)
    """The field's value, None if it is not of its type."""
    if kind is msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(value))
    nested = next((k for k in get_args(kind) if isinstance(k, type) and issubclass(k, msgspec.Struct)), None)
    if nested is not None:
        return usable(value, nested) if isinstance(value, dict) else None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None
