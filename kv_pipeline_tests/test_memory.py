from __future__ import annotations

import ctypes
import os
import sys
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
