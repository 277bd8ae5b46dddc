"""The entries of a HAR file, one by one: the file is one JSON document, of which never more than an entry is held."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

_READ_BYTES: Final = 1 << 20
MAX_ENTRY_BYTES: Final = 256 * 1024 * 1024
"""Longest entry that is read: five times what the API takes, and a bound on memory."""
_HEAD_BYTES: Final = 1 << 24
_ENTRIES: Final = re.compile(rb'"entries"\s*:\s*\[')
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],"]', re.DOTALL)
_GAP: Final = b" \t\r\n,"


class HarError(Exception):
    """What is wrong with a file from some place on: a reason and what was found."""

    def __init__(self, reason: str, found: str) -> None:
        super().__init__(reason)
        self.reason, self.found = reason, found


def entries_of(file: BinaryIO) -> Iterator[bytes]:
    """The elements of the array `entries`, as raw JSON; of one that is no object, its raw text.

    Raises:
        HarError: The file is no HAR, is cut off, or has an entry that is too long; entries before that were yielded.
    """
    buffer = _Buffer(file)
    _find_entries(buffer)
    while buffer.skip(_GAP):
        if buffer.data[buffer.at] == ord("]"):
            return
        if buffer.data[buffer.at] == ord("}"):
            raise HarError("cut_off_file", "its entries end with a bracket of another kind")
        yield _element(buffer)
    raise HarError("cut_off_file", "the file ends before its entries do")


class _Buffer:
    """What was read and not used yet: `data` from `at` on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.data = b""
        self.at = 0

    def more(self) -> bool:
        """Drop what was used and read as much again as is left, so that a long entry costs no more than its length."""
        rest = self.data[self.at :]
        added = self._file.read(max(_READ_BYTES, len(rest)))
        self.data, self.at = rest + added, 0
        return bool(added)

    def skip(self, characters: bytes) -> bool:
        """Go to the next byte that is none of these; False at the end of the file."""
        while True:
            rest = self.data[self.at : self.at + _READ_BYTES]
            stripped = rest.lstrip(characters)
            self.at += len(rest) - len(stripped)
            if stripped:
                return True
            if self.at >= len(self.data) and not self.more():
                return False


def _find_entries(buffer: _Buffer) -> None:
    """Go behind the bracket. Quotes inside strings are escaped, so what looks like this key is one."""
    while (found := _ENTRIES.search(buffer.data)) is None:
        if len(buffer.data) > _HEAD_BYTES or not buffer.more():
            raise HarError("not_a_har", "the file is no HAR: it has no list of entries")
    buffer.at = found.end()


def _element(buffer: _Buffer) -> bytes:
    """Take the element that begins here; it ends where its brackets do, or, without any, at the next comma."""
    depth, position = 0, buffer.at
    while True:
        for token in _TOKEN.finditer(buffer.data, position):
            kind = token[0]
            if kind == b'"':  # a string without its end
                position = token.start()
                break
            position = token.end()
            if len(kind) > 1 or (kind == b"," and depth):
                continue
            if depth == 0 and kind in b",]}":
                return _taken(buffer, token.start())
            depth += 1 if kind in b"{[" else -1
            if depth == 0:
                return _taken(buffer, token.end())
        if len(buffer.data) - buffer.at > MAX_ENTRY_BYTES:
            raise HarError("long_entry", f"an entry is longer than {MAX_ENTRY_BYTES >> 20} MiB")
        position -= buffer.at
        if not buffer.more():
            raise HarError("cut_off_file", "the file ends within an entry")


def _taken(buffer: _Buffer, end: int) -> bytes:
    element, buffer.at = buffer.data[buffer.at : end], end
    return element
