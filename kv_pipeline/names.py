"""Names that come from outside: as parts of paths and keys, and as text that can be shown."""

from __future__ import annotations

import hashlib
from typing import Final
from urllib.parse import quote

TEMPORARY: Final = ".tmp-"
"""Prefix of temporary files and folders; followed by the process that made them and a dash."""
_MAX_NAME: Final = 150


def safe_name(text: str) -> str:
    """A file name and partition key part for any text: one to one, no separators, no dots that climb, not too long.

    Nor is it empty, or hidden by a dot in front: temporary files are.
    """
    name = quote(text, safe="", errors="surrogatepass").replace("..", "%2E%2E").replace("~", "%7E") or "%"
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if len(name) <= _MAX_NAME:
        return name
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{name[: _MAX_NAME - 33]}~{digest}"


def printable(text: str) -> str:
    """Text for messages and tables: control characters and undecodable bytes of file names as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
