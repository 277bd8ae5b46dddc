"""Slices of partitions for runs."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.cluster.batches import weighed

KEYS = st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=30)
WEIGHTS = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 9))


@given(KEYS, WEIGHTS, st.integers(0, 20), st.integers(1, 5))
def test_slices_are_the_longest_that_fit(keys, weights, limit, max_keys):
    slices = [list(part) for part in weighed(keys, weights, limit, max_keys)]
    assert [key for part in slices for key in part] == keys

    def fits(part):
        return len(part) == 1 or (len(part) <= max_keys and sum(weights.get(key, 0) for key in part) <= limit)

    assert all(part and fits(part) for part in slices)
    assert not any(fits([*part, following[0]]) for part, following in pairwise(slices))


def test_databases_of_any_size():
    sizes = {"a": 300, "b": 10, "c": 10, "d": 90}
    assert list(weighed("abcd", sizes, 100, 10)) == ["a", "bc", "d"]
    assert list(weighed("", sizes, 100, 10)) == []
