"""The roll-up of the committed example."""

from __future__ import annotations

from collections import Counter

import pytest

from kv_pipeline.core import tokenizer
from kv_pipeline.core.validation import report_rows, shared_hits
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, VALIDATION_REPORT, VALIDATION_SUMMARY
from kv_pipeline.steps.fleet import FLEET, roll_up
from kv_pipeline_tests.factories import open_store

SUMS = ["prompt_tokens", "hit_tokens", "billed_prompt_tokens", "billed_read_tokens"]


def summed_row_by_row(store):
    """Sums per conversation, model, scope and lifetime of every billed request, in every scope."""
    keys = store.partitions(VALIDATION_REPORT.name)
    report = store.read(VALIDATION_REPORT, keys)
    requests = report.filter(scope="agent", lifetime="5m").drop("scope", "lifetime", "hit_blocks", "hit_tokens")
    blocks = [store.read(TOKENIZED_BLOCKS, [key]) for key in keys]
    users = sorted({key.partition("/")[0] for key in keys})
    groups = [("user", [f for f, k in zip(blocks, keys, strict=True) if k.startswith(f"{u}/")]) for u in users]
    shared = [shared_hits(frames, scope) for scope, frames in [*groups, ("fleet", blocks)]]
    size = store.settings.block_size
    sums = Counter()
    for frame in [report, *(report_rows(requests, hits, size) for hits in shared)]:
        for row in frame.drop_nulls("billed_prompt_tokens").iter_rows(named=True):
            place = (row["conversation_id"], row["model"], row["scope"], row["lifetime"])
            sums.update({(*place, "n_requests"): 1, **{(*place, name): row[name] for name in SUMS}})
    return sums


@pytest.mark.parametrize("n_rows", [0, 60, 10**6])
def test_sums_are_those_of_single_requests_however_many_are_summed_at_a_time(example, monkeypatch, n_rows):
    monkeypatch.setattr("kv_pipeline.steps.fleet.ROWS_AT_A_TIME", n_rows)
    summary = roll_up(example)
    assert summary.equals(example.read(VALIDATION_SUMMARY, [FLEET]))
    assert summary["scope"].unique().sort().to_list() == ["agent", "conversation", "fleet", "user"]
    found = summary.unpivot(["n_requests", *SUMS], index=VALIDATION_SUMMARY.unique).rows()
    assert {tuple(place): value for *place, value in found} == dict(summed_row_by_row(example))


def test_the_vocabulary_is_gone_before_prompts_need_the_memory(example, monkeypatch):
    seen = []
    monkeypatch.setattr("kv_pipeline.steps.fleet.stale_reports", lambda _: ["ada"])
    monkeypatch.setattr("kv_pipeline.steps.fleet.explain_user", lambda *_: seen.append(tokenizer.is_loaded()))
    tokenizer.encoder()
    roll_up(example)
    assert seen == [False]


def test_a_store_without_conversations_has_no_sums(tmp_path, monkeypatch):
    summary = roll_up(open_store(tmp_path / "store", monkeypatch))
    assert summary.is_empty()
