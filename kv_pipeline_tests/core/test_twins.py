from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.twins import index_messages
from kv_pipeline.schemas.requests import MESSAGE_INDEX
from kv_pipeline.store import check
from kv_pipeline_tests import oracle
from kv_pipeline_tests.factories import raw_request, raw_requests


def index_of(*rows):
    """Rows of (streaming, content, seconds, outcome), in row order."""
    return index_messages(
        raw_requests(
            *(
                raw_request(row_id, at_s, is_streaming=streaming, content_id=content, outcome=outcome)
                for row_id, (streaming, content, at_s, outcome) in enumerate(rows, start=1)
            )
        )
    )


requests = st.tuples(
    st.booleans(), st.integers(0, 2), st.integers(0, 4), st.sampled_from(["ok", "ok", "ok", "error", "aborted"])
)


@settings(max_examples=150)
@given(st.lists(requests, max_size=14))
def test_pairs_are_first_in_first_out(rows):
    index = index_of(*rows)
    ok = [(i, row) for i, row in enumerate(rows, start=1) if row[3] == "ok"]
    in_order = sorted(ok, key=lambda item: (item[1][2], item[0]))
    pairs = oracle.twins((row_id, streaming, content) for row_id, (streaming, content, *_) in in_order)
    found = {row["row_id"]: row for row in index.iter_rows(named=True)}
    assert sorted(found) == [row_id for row_id, _ in ok]
    for row_id, row in found.items():
        billed = pairs.get(row_id, row_id)
        n_replays = sum(twin == billed for twin in pairs.values())
        role = "replay_twin" if row_id in pairs else "streaming_twin" if n_replays else "single"
        assert (row["billed_row_id"], row["n_replays"], row["twin_role"]) == (billed, n_replays, role)
    check(MESSAGE_INDEX, index)


STREAMED, REPLAYED = True, False


@pytest.mark.parametrize(
    ("rows", "billed"),
    [
        pytest.param([STREAMED, REPLAYED, STREAMED, REPLAYED], [1, 1, 3, 3], id="turn by turn"),
        pytest.param([STREAMED, STREAMED, REPLAYED, REPLAYED], [1, 2, 1, 2], id="side by side"),
        pytest.param([STREAMED, REPLAYED, REPLAYED], [1, 1, 1], id="replayed twice"),
        pytest.param([REPLAYED, STREAMED], [1, 2], id="a replay before"),
        pytest.param([REPLAYED, STREAMED, REPLAYED], [1, 2, 2], id="one before, one after"),
    ],
)
def test_pairing(rows, billed):
    index = index_of(*((streaming, 7, at_s, "ok") for at_s, streaming in enumerate(rows)))
    assert index["billed_row_id"].to_list() == billed


def test_time_decides_before_row_order():
    assert index_of((REPLAYED, 7, 5, "ok"), (STREAMED, 7, 1, "ok"))["billed_row_id"].to_list() == [2, 2]


def test_no_requests():
    assert index_of().is_empty()
