"""Locks between processes, as files: the system frees those of a dead process, on folders that machines share too.

A writer lock is held alone, or shared. Whoever has it already in this process goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

WRITER_LOCK: Final = "writer.lock"
"""Name of a store's."""


class _Held:
    """A lock as this process holds it; closing the file frees it."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.mode = fcntl.LOCK_UN

    def change(self, wanted: int) -> bool:
        """Take the lock in another mode; with LOCK_NB, whether it could be had, and if not none is held.

        It is let go of first: two processes that share it, each waiting for the other's end, would wait for ever.
        """
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self.mode = fcntl.LOCK_UN
        try:
            fcntl.flock(self._file, wanted)
        except BlockingIOError:
            return False
        self.mode = wanted & ~fcntl.LOCK_NB
        return True


_held: dict[Path, _Held] = {}


@contextlib.contextmanager
def holding(path: Path, mode: int, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a writer lock.

    Args:
        path: The lock file; made if missing.
        mode: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.
        on_wait: Called if others are in the way, before waiting for them.

    Raises:
        RuntimeError: It is to be held alone by a process that shares it, which might wait for ever.
    """
    if path in _held:
        if mode == fcntl.LOCK_EX and _held[path].mode != mode:
            if on_wait:
                on_wait()
            raise RuntimeError("a process that shares the writer lock can't have it alone")
        yield
        return
    with path.open("a+") as file:  # readable, as NFS wants it for shared locks
        held = _Held(file)
        if not held.change(mode | fcntl.LOCK_NB):
            if on_wait:
                on_wait()
            held.change(mode)
        _held[path] = held
        try:
            yield
        finally:
            del _held[path]


def is_held(path: Path) -> bool:
    """Whether this process holds a writer lock, alone or shared."""
    return path in _held


@contextlib.contextmanager
def tried(path: Path) -> Iterator[bool]:
    """Whether nobody else holds a writer lock; if so, nobody does until the end."""
    with path.open("a+") as file:
        yield _Held(file).change(fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def lending(path: Path) -> Iterator[None]:
    """Share a lock that this process holds alone; at the end wait for the others."""
    held = _held[path]
    held.change(fcntl.LOCK_SH)
    try:
        yield
    finally:
        held.change(fcntl.LOCK_EX)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody shares a lock that this process holds; if so, nobody does until the end.

    Of several that ask at the end of their work, the last one is alone.
    """
    held = _held[path]
    mode = held.mode
    is_alone = mode == fcntl.LOCK_EX or held.change(fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield is_alone
    finally:
        if held.mode != mode:
            held.change(mode)
