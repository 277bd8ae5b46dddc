"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys

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
