from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from kv_pipeline.core.simulate import LIFETIMES_S
from kv_pipeline.core.validation import shared_hits
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, VALIDATION_REPORT
from kv_pipeline.steps.reuse import conversation_reuse_frames, conversations_reuse_frames, fleet_reuse_frames
from kv_pipeline.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = Store.open(tmp_path_factory.mktemp("reuse") / "store")
    bring_up_to_date(made, Inputs(Path("data/example").resolve()))
    return made


def curve(frames):
    rows = frames.ttl_curve.filter(pl.col("lifetime").is_in(list(LIFETIMES_S)))
    return dict(rows.select("lifetime", "hit_tokens").iter_rows())


def test_a_conversation_alone_hits_what_its_validation_report_says(store):
    keys = store.partitions(VALIDATION_REPORT.name)
    for key in keys:
        report = store.read(VALIDATION_REPORT, [key]).filter(pl.col("scope") == "conversation")
        predicted = report.group_by("lifetime").agg(pl.col("hit_tokens").sum())
        frames = conversation_reuse_frames(store, key, 1e6)
        assert curve(frames) == dict(predicted.iter_rows())
        assert frames.ttl_curve["prompt_tokens"][0] == report.unique("request_index")["prompt_tokens"].sum()
        assert frames.capacity_curve["lru_hit_tokens"].max() == curve(frames)["infinite"]
        assert frames.working_set["t_s"].min() > 1e9
    assert len(keys) == 8


def test_conversations_alone_add_up(store):
    alone = [conversation_reuse_frames(store, key) for key in store.partitions(TOKENIZED_BLOCKS.name)]
    together = conversations_reuse_frames(store)
    for lifetime in LIFETIMES_S:
        assert curve(together)[lifetime] == sum(curve(frames)[lifetime] for frames in alone)
    largest = max(frames.smallest_capacities.no_eviction_blocks for frames in alone)
    assert together.smallest_capacities.no_eviction_blocks == largest


def test_the_fleet_hits_what_the_roll_up_computes(store):
    blocks = store.read(TOKENIZED_BLOCKS, store.partitions(TOKENIZED_BLOCKS.name))
    hits = shared_hits(blocks.partition_by("conversation_id", maintain_order=True), "fleet")
    predicted = hits.group_by("lifetime").agg(pl.col("hit_blocks").cast(pl.Int64).sum() * store.settings.block_size)
    assert curve(fleet_reuse_frames(store)) == dict(predicted.iter_rows())


def test_an_empty_store_has_empty_curves(tmp_path):
    frames = fleet_reuse_frames(Store.open(tmp_path / "store"))
    assert frames.ttl_curve["hit_tokens"].sum() == 0
    assert frames.working_set.is_empty()
