"""A published claude-trace log through all steps. Runs where KV_PIPELINE_TRACE_LOG names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kv_pipeline.schemas.blocks import VALIDATION_REPORT
from kv_pipeline.schemas.conversations import CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline_tests.factories import bring_up_to_date, open_store

LOG_VARIABLE = "KV_PIPELINE_TRACE_LOG"
LOG = Path(os.environ.get(LOG_VARIABLE) or "log is not here")


@pytest.mark.skipif(not LOG.is_file(), reason=f"set {LOG_VARIABLE} to the 34 published pairs of claude-trace")
def test_a_published_log(tmp_path, monkeypatch):
    """34 pairs: an agent loop of 13 requests, and 21 probes and classifications on a small model."""
    store = open_store(tmp_path / "store", monkeypatch)
    (tmp_path / "inbox" / "u").mkdir(parents=True)
    (tmp_path / "inbox" / "u" / "log.jsonl").symlink_to(LOG.resolve())
    bring_up_to_date(store, tmp_path / "inbox")
    known = store.read(CONVERSATIONS, ["u"]).row(0, named=True)
    assert (known["n_requests"], known["n_agents"], known["structure"]) == (13, 1, "content")
    assert store.read(UNINDEXED_REQUESTS, ["u"])["reason"].to_list() == ["side_request"] * 21
    report = store.read(VALIDATION_REPORT, store.partitions(VALIDATION_REPORT.name))
    assert report["billed_prompt_tokens"].null_count() == 0
