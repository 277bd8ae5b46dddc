"""Lines of log files that grow while they are read, and of any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from kv_pipeline.limits import max_payload_bytes

BOM: Final = b"\xef\xbb\xbf"
BUFFER_BYTES: Final = 64 * 1024
"""To open such a file with: lines are longer than Python's buffer, and would be put together of pieces."""
MAX_LINE_BYTES: Final = 256 * 1024 * 1024
"""Longest line that is ever read: a bound on memory, whatever `limits.max_payload_bytes` says."""


def max_line_bytes() -> int:
    """Longest line that is read."""
    return min(MAX_LINE_BYTES, max_payload_bytes())


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long as much as shows that it is."""
    limit = max_line_bytes()
    while line := file.readline(limit + 1):
        rest = line
        while len(rest) > limit and not rest.endswith(b"\n"):
            rest = file.readline(limit + 1)
        yield line
