"""Python's collector of reference cycles, and what it need not look at."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def only_new_objects() -> Iterator[None]:
    """Keep the collector to what is made in the block.

    Imports leave hundreds of thousands of objects, and a step that makes many more has the collector walk all of them:
    40 ms each time. Cycles among what was there before are found after the block.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
