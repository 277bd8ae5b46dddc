from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.export.oracle_general import NEVER, RECORD, fill_next_uses, read_records


def next_uses(ids):
    """Searches the rest of the list for each; records are counted from 1."""
    return [next((n + 1 for n in range(i + 1, len(ids)) if ids[n] == ids[i]), NEVER) for i in range(len(ids))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 70))
def test_next_uses_are_found_whatever_the_chunks(folder, ids, chunk_records):
    path = folder / "r"
    records = np.zeros(len(ids), dtype=RECORD)
    records["id"], records["time"], records["size"] = ids, range(len(ids)), 64
    path.write_bytes(records.tobytes())
    fill_next_uses(path, 9, chunk_records)
    found = read_records(path)
    assert found["next_vtime"].tolist() == next_uses(ids)
    assert (found["id"].tolist(), found["time"].tolist()) == (ids, list(range(len(ids))))


def test_the_layout_is_that_of_libcachesim():
    record = np.array([(1, 2, 3, -1)], dtype=RECORD).tobytes()
    assert record.hex() == "01000000" + "0200000000000000" + "03000000" + "ff" * 8
