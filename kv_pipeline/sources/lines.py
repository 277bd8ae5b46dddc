"""Lines of log files that grow while they are read, and of any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

BOM: Final = b"\xef\xbb\xbf"
MAX_LINE_BYTES: Final = 256 * 1024 * 1024
"""Longest line that is read: five times what the API takes, and a bound on memory."""


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long as much as shows that it is."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line
