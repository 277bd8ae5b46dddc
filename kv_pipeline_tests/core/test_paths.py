from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.paths import block_paths, shared_prefix_blocks
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
