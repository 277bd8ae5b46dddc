from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.paths import (
    block_paths,
    chained_ids,
    prefix_references,
    shared_by_references,
    shared_prefix_blocks,
)
from kv_pipeline_tests import oracle


@st.composite
def stored_requests(draw):
    """References as tables hold them, and the paths they stand for."""
    rows, paths, n_blocks = [], [], 0
    for index in range(draw(st.integers(0, 8))):
        prefix = draw(st.integers(-1, index - 1))
        shared = draw(st.integers(0, len(paths[prefix]))) if prefix >= 0 else 0
        n_new = draw(st.integers(0, 4))
        rows.append((prefix, shared, n_new))
        paths.append((paths[prefix][:shared] if prefix >= 0 else []) + list(range(n_blocks, n_blocks + n_new)))
        n_blocks += n_new
    return rows, paths


@given(stored_requests())
def test_paths_are_rebuilt(stored):
    rows, paths = stored
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    assert [path.tolist() for path in block_paths(*columns)] == paths


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_shared_prefix(path, other):
    assert shared_prefix_blocks(np.array(path), np.array(other)) == oracle.common_prefix(path, other)


@given(stored_requests())
def test_shared_prefix_from_references_alone(stored):
    rows, paths = stored
    prefixes, shared_blocks, _ = list(zip(*rows, strict=True)) or [(), (), ()]
    for other, request in itertools.combinations(range(len(paths)), 2):
        expected = oracle.common_prefix(paths[request], paths[other])
        assert shared_by_references(request, other, prefixes, shared_blocks) == expected
        assert shared_by_references(other, request, prefixes, shared_blocks) == expected


def ids(*paths):
    return [np.array(path, dtype=np.uint64) for path in paths]


@given(stored_requests(), st.sampled_from([1, 2**40]))
def test_references_lead_back_to_the_paths(stored, factor):
    paths = [[(block + 1) * factor for block in path] for path in stored[1]]
    found = prefix_references(ids(*paths))
    columns = [found.prefix_requests.tolist(), found.shared_blocks.tolist(), found.n_new_blocks.tolist()]
    assert [found.new_blocks[path].tolist() for path in block_paths(*columns)] == paths
    assert len(found.new_blocks) == len({block for path in paths for block in path})


@pytest.mark.parametrize(
    "paths",
    [[[1, 2], [3, 2]], [[1, 2], [2]], [[1, 2, 3], [1, 3]], [[1, 1]], [[1, 2], [1, 3, 3]], [[1, 2, 3], [1, 4, 3]]],
)
def test_ids_that_mean_no_prefix_are_refused(paths):
    with pytest.raises(ValueError, match="stood behind other blocks"):
        prefix_references(ids(*paths))


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=6))
def test_chained_ids_are_equal_where_prefixes_are(paths):
    prefixes = [tuple(path[: end + 1]) for path in paths for end in range(len(path))]
    chained = chained_ids(ids(*paths))
    flat = [block for path in chained for block in path.tolist()]
    assert [len(path) for path in chained] == [len(path) for path in paths]
    assert [[a == b for b in flat] for a in flat] == [[a == b for b in prefixes] for a in prefixes]
    prefix_references(chained)
