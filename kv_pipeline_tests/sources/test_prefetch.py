"""Reading ahead changes nothing but when."""

import threading
from collections.abc import Iterator

import pytest

from kv_pipeline.sources.prefetch import prefetched


def test_same_items_in_the_same_order() -> None:
    assert list(prefetched(range(1000), 3)) == list(range(1000))


def test_error_comes_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    items = prefetched(failing())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_abandoned_reader_ends() -> None:
    before = threading.active_count()
    items = prefetched(iter(range(10**6)), 2)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() == before
