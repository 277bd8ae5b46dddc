"""Progress of long work, from wherever it is done to whoever is watching.

In-process runs do the work in the thread that watches it, so a module-level listener is all there is. Without a
listener reporting costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Step(NamedTuple):
    """How far one asset is."""

    asset: str
    done: int
    total: int


Listener = Callable[[Step], None]
_listeners: list[Listener] = []


@contextlib.contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Report progress to a listener while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def counter(asset: str, total: int) -> Callable[[int], None]:
    """A function to call with the number of items just finished; reports 0 of `total` at once."""
    done = 0

    def advance(n_items: int) -> None:
        nonlocal done
        done += n_items
        for listener in _listeners:
            listener(Step(asset, done, total))

    advance(0)
    return advance
