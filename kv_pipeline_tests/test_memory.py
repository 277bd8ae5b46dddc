from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from pathlib import Path

import pytest

from kv_pipeline import memory


def resident_mb() -> float:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="other C libraries than GNU's have their own ways",
)
def test_freed_memory_goes_back_to_the_system() -> None:
    held = [b"x" * 100_000 for _ in range(2_000)]  # each too small for a mapping of its own
    last = held.pop()  # above the others, so that these stay when they are freed
    held.clear()
    kept_mb = resident_mb()
    memory.give_back()
    assert resident_mb() < kept_mb - 150
    assert len(last) == 100_000


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_old_cycles_are_found_after_the_block_and_new_ones_within() -> None:
    old = weakref.ref(Cycle())
    with memory.only_new_objects():
        new = weakref.ref(Cycle())
        gc.collect()
        assert new() is None
    gc.collect()
    assert old() is None
    assert gc.get_freeze_count() == 0


def test_an_error_ends_it_too() -> None:
    with pytest.raises(ValueError, match="x"), memory.only_new_objects():
        raise ValueError("x")
    assert gc.get_freeze_count() == 0
