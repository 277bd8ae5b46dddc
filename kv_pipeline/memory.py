"""Memory: what was freed goes back to the system, and what is there is not looked at again and again."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

import pyarrow


def give_back() -> None:
    """Return what allocators keep for later: after a step that took much, the next one needs it elsewhere.

    A process that read a database of 10 GB otherwise keeps 200 MB that nothing uses. Source: malloc_trim(3).
    """
    pyarrow.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries than GNU's have none
        if trim is not None:
            trim(0)


@contextlib.contextmanager
def only_new_objects() -> Iterator[None]:
    """Keep the collector of reference cycles to what is made in the block.

    Imports leave hundreds of thousands of objects, and a step that makes many more has the collector walk all of them:
    40 ms each time. Cycles among what was there before are found after the block.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
