"""Telling a log by its beginning: other JSONL files lie beside it, transcripts among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

BEGINNING_BYTES: Final = 65_536
_PAIR: Final = re.compile(rb'^\s*\{\s*"(?:request"\s*:\s*(?:\{|null)|response"\s*:\s*(?:\{|null)|logged_at"\s*:)', re.M)
_REQUEST: Final = b'"request"'
_BOM: Final = b"\xef\xbb\xbf"


def is_log(path: Path) -> bool:
    """Whether a line that begins within the file's first 64 KiB begins like a request/response pair.

    Raises:
        OSError: The file can't be read.
    """
    if not path.is_file():  # reading a pipe would wait for its writer
        return False
    with path.open("rb") as file:
        return begins_like_log(file.read(BEGINNING_BYTES))


def begins_like_log(beginning: bytes) -> bool:
    """The same of the first `BEGINNING_BYTES` of a file."""
    beginning = beginning.removeprefix(_BOM)
    return _REQUEST in beginning and _PAIR.search(beginning) is not None
