"""What stands in a reader's way, and the JSON Schemas that find most of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any, Final, NamedTuple

import jsonschema_rs
import msgspec

_MOST: Final = 1000
"""Problems of one document that are counted; nobody reads more."""
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HIDDEN: Final = "value"


class Problem(NamedTuple):
    """Something that a reader refuses.

    Attributes:
        path: JSON path; in files of lines with the line's number before it.
        why: What is wrong there; values of the file are not repeated.
    """

    path: str
    why: str


@cache
def schema(name: str) -> dict[str, Any]:
    """A JSON Schema that ships with the package, by the beginning of its file's name."""
    content = files("kv_pipeline.inspection").joinpath("schemas", f"{name}.schema.json").read_bytes()
    return msgspec.json.decode(content, type=dict[str, Any])


@cache
def _validator(name: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema(name), mask=_HIDDEN)


def schema_problems(name: str, document: Any) -> list[Problem]:  # noqa: ANN401  (JSON is any type)
    """Where a document is not what a schema says, at most 1,000 places."""
    validator = _validator(name)
    try:
        if validator.is_valid(document):
            return []
        found = islice(validator.iter_errors(document), _MOST)
        return [Problem(json_path(error.instance_path), error.message) for error in found]
    except ValueError:
        return [Problem("$", "nested too deeply")]


def json_path(steps: Iterable[str | int]) -> str:
    """Keys and places as a JSON path: `$.requests[3].hash_ids[0]`."""
    return "$" + "".join(map(_step, steps))


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _PLAIN_KEY.fullmatch(step) else f"[{msgspec.json.encode(step).decode()}]"


def on_line(number: int, problems: Sequence[Problem]) -> Iterator[Problem]:
    """Problems of one line, whose 1-based number goes before the path."""
    return (Problem(f"line {number}: {path}", why) for path, why in problems)
