"""Reading ahead in a thread: SQLite reads without Python's lock, so the next rows come while these are parsed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Final, TypeVar

Item = TypeVar("Item")

READ_AHEAD_ITEMS: Final = 8


class _Raised:
    """An exception on its way to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END: Final = object()


def prefetched(items: Iterable[Item], n_ahead: int = READ_AHEAD_ITEMS) -> Iterator[Item]:
    """The same items in the same order, read ahead in a thread.

    Args:
        items: Iterated in one other thread from start to end.
        n_ahead: Items held at most.

    Raises:
        BaseException: Whatever iterating raised, after the items before it.
    """
    waiting: queue.Queue[object] = queue.Queue(n_ahead)
    is_abandoned = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, waiting, is_abandoned), daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item  # type: ignore[misc]  # what _fill put in
    finally:
        is_abandoned.set()
        while thread.is_alive():  # a full queue must not keep it
            try:
                waiting.get(timeout=0.01)
            except queue.Empty:
                continue


def _fill(items: Iterable[Item], waiting: queue.Queue[object], is_abandoned: threading.Event) -> None:
    try:
        for item in items:
            waiting.put(item)
            if is_abandoned.is_set():
                if isinstance(items, Generator):
                    items.close()  # here: SQLite's objects may be used in one thread only
                return
    except BaseException as error:  # noqa: BLE001  (handed on, not handled)
        waiting.put(_Raised(error))
    finally:
        waiting.put(_END)
