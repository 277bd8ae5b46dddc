from __future__ import annotations

import gc
import weakref

import pytest

from kv_pipeline.garbage import only_new_objects


class Cycle:
    def __init__(self):
        self.itself = self


def test_old_cycles_are_found_after_the_block_and_new_ones_within():
    old = weakref.ref(Cycle())
    with only_new_objects():
        new = weakref.ref(Cycle())
        gc.collect()
        assert new() is None
    gc.collect()
    assert old() is None
    assert gc.get_freeze_count() == 0


def test_an_error_ends_it_too():
    with pytest.raises(ValueError, match="x"), only_new_objects():
        raise ValueError("x")
    assert gc.get_freeze_count() == 0
