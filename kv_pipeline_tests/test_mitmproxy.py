"""HAR files that a real mitmproxy wrote, held against the databases with the same traffic.

Runs where mitmproxy is installed, in whatever environment: its dependencies are pinned, so it is none of ours.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from kv_pipeline.core.validation import conversation_paths
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS, SKIPPED_INPUT
from kv_pipeline.store import Store
from kv_pipeline_tests.as_har import CREDENTIAL, MITMDUMP, VARIABLE, put_back, recorded_in, write_har
from kv_pipeline_tests.factories import bring_up_to_date, open_store
from kv_pipeline_tests.recovery_truth import hide_transcripts

EXAMPLE = Path("data/example").resolve()
CAPTURES = Path(os.environ.get("KV_PIPELINE_CAPTURES") or "captures are not here")
needs_captures = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason="real captures are private: set KV_PIPELINE_CAPTURES to their folder"
)
BILLED = ["input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"]
SAID = ["model", "is_streaming", "status_code", "outcome", "message_id", "stop_reason", "output_types", "answer_tools",
        "session_id", "named_agent_id", "breakpoints"]  # fmt: skip

pytestmark = pytest.mark.skipif(
    MITMDUMP is None, reason=f"an independent writer: put mitmproxy's mitmdump into PATH or {VARIABLE}"
)


@pytest.fixture(
    params=[
        (EXAMPLE, "grace"),
        (EXAMPLE, "linus"),
        pytest.param((CAPTURES, "fixed"), marks=needs_captures),
        pytest.param((CAPTURES, "older"), marks=needs_captures),
    ],
    ids=lambda param: param[1],
)
def folder(request):
    return request.param[0] / request.param[1]


def test_a_har_gives_what_the_database_gives(folder, tmp_path, monkeypatch):
    """Structure, blocks, bills and hits, once the requests have the times at which they were sent at first."""
    user = folder.name
    hide_transcripts(folder, tmp_path / "databases" / user)
    traffic = recorded_in(folder / "requests.db")
    before = datetime.now(UTC)
    har = write_har(tmp_path / "hars" / user / "requests.har", traffic, tmp_path / "mitmproxy")
    written = put_back(har, traffic)
    times = [before, *written, datetime.now(UTC)]
    assert times == sorted(times)
    databases, hars = (open_store(tmp_path / f"store of {name}", monkeypatch) for name in ("databases", "hars"))
    bring_up_to_date(databases, tmp_path / "databases")
    bring_up_to_date(hars, tmp_path / "hars")

    assert requests(hars).height == len(traffic)
    assert_frame_equal(requests(hars), requests(databases))
    assert structure(hars, user) == structure(databases, user)
    assert blocks(hars) == blocks(databases)
    assert_frame_equal(hits(hars), hits(databases))
    assert hars.read(SKIPPED_INPUT, hars.partitions(SKIPPED_INPUT.name)).is_empty()
    files = [path for path in hars.root.rglob("*") if path.is_file()]
    assert [path for path in files if CREDENTIAL.encode() in path.read_bytes()] == []
    assert [path for path in hars.root.rglob("*.parquet") if CREDENTIAL in repr(pl.read_parquet(path).rows())] == []


def requests(store: Store) -> pl.DataFrame:
    """What requests and answers say, in order."""
    keys = store.partitions(RAW_REQUESTS.name)
    return store.read(RAW_REQUESTS, keys).sort("row_id").select("row_id", *SAID, *BILLED)


def structure(store: Store, user: str) -> list[list[tuple[object, ...]]]:
    """Conversations, agents, requests, and why others are in none; a recording's name counts for nothing."""
    columns = ["conversation_id", "request_index", "agent_id", "turn_index", "message_id", "n_replays", "billed_row_id"]
    found = [
        store.read(CONVERSATIONS, [user]).select("conversation_id", "n_requests", "n_agents", "structure"),
        store.read(AGENTS, [user]),
        store.read(CONVERSATION_REQUESTS, [user]).select(*columns, "answer_row_id", "is_after_compaction"),
        store.read(UNINDEXED_REQUESTS, [user]).select("row_id", "reason").sort("row_id"),
    ]
    return [frame.rows() for frame in found]


def blocks(store: Store) -> list[list[list[int]]]:
    """Hashes of each request's blocks, by conversation."""
    conversations = [store.read(TOKENIZED_BLOCKS, [key]) for key in store.partitions(TOKENIZED_BLOCKS.name)]
    hashes = [frame["new_block_hashes"].explode().drop_nulls().to_numpy() for frame in conversations]
    return [
        [known[path].tolist() for path in conversation_paths(frame)]
        for frame, known in zip(conversations, hashes, strict=True)
    ]


def hits(store: Store) -> pl.DataFrame:
    """Simulated and billed tokens of each request, in each scope and with each lifetime."""
    return store.read(VALIDATION_REPORT, store.partitions(VALIDATION_REPORT.name))
