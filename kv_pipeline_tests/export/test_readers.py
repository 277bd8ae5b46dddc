"""Our exports as published readers read them: what they reuse is what the blocks model hits."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kv_pipeline.core.reuse import measure_reuse
from kv_pipeline.core.reuse_curves import lru_hits
from kv_pipeline.core.simulate import Use
from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import ExportOptions, Format, HashIdScope, Profile
from kv_pipeline.export.oracle_general import NEVER, RECORD, fill_next_uses, read_records
from kv_pipeline.schemas.blocks import VALIDATION_REPORT
from kv_pipeline_tests.factories import bring_up_to_date, open_store
from kv_pipeline_tests.readers import answer_of, needs_dynamo, needs_libcachesim

EXAMPLE = Path("data/example").resolve()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = open_store(tmp_path_factory.mktemp("store"), patch)
        bring_up_to_date(made, EXAMPLE)
        yield made


def export(store, out: Path, **options) -> list[Path]:
    return export_traces(store, out, ExportOptions(**options)).files


def there_and_back(paths: list[list[int]], out: Path) -> Path:
    """Records of each prompt from root to leaf, which is when it hits, and back, which makes the root the latest used.

    In between nothing is evicted: the blocks are there. So a cache that knows nothing of prefixes holds what one that
    evicts leaves first holds.
    """
    ids = np.concatenate([np.array([*path, *path[::-1]], dtype=np.int64) for path in paths])
    records = np.zeros(len(ids), dtype=RECORD)
    records["id"], records["size"], records["time"], records["next_vtime"] = ids, 1, np.arange(len(ids)), NEVER
    out.write_bytes(records.tobytes())
    fill_next_uses(out, int(ids.max()))
    return out


@needs_libcachesim
def test_libcachesim_finds_the_misses_of_the_blocks_model(store, tmp_path):
    [exported] = export(store, tmp_path, format=Format.ORACLE_GENERAL, hash_ids=HashIdScope.GLOBAL)
    records = read_records(exported)
    n_blocks = len(np.unique(records["id"]))
    everything = int(records["size"].sum())
    [unbounded] = answer_of("libcachesim_misses.py", exported, "LRU", everything)
    [belady] = answer_of("libcachesim_misses.py", exported, "Belady", everything // 40)
    [lru] = answer_of("libcachesim_misses.py", exported, "LRU", everything // 40)
    assert unbounded == pytest.approx(n_blocks / len(records), abs=1e-12)
    assert belady < lru


@needs_libcachesim
def test_libcachesim_and_the_capacity_curve_agree(store, tmp_path):
    [table] = export(store, tmp_path, format=Format.PARQUET, hash_ids=HashIdScope.GLOBAL)
    requests = pl.read_parquet(table)
    paths = [path for path in requests["hash_ids"].to_list() if path]
    n_ids, n_used = max(map(max, paths)) + 1, sum(map(len, paths))
    uses = [Use("one", float(n), np.array(path, dtype=np.uint32)) for n, path in enumerate(paths)]
    reuse = measure_reuse(uses, n_ids, block_size=64, prompt_tokens=0)
    longest = max(map(len, paths))
    capacities = [longest, longest + 1, 2 * longest, 3 * longest, n_ids]
    file = there_and_back(paths, tmp_path / "there-and-back.oracleGeneral")
    misses = answer_of("libcachesim_misses.py", file, "LRU", *capacities)
    expected = (n_used - lru_hits(reuse, capacities)) / (2 * n_used)
    assert misses == pytest.approx(expected.tolist(), abs=1e-12)
    assert all(before >= after for before, after in pairwise(misses))
    assert misses[0] > misses[-1]


def replayed(files: list[Path], name: str, block_size: int = 64) -> pl.DataFrame:
    columns = ["n_requests", "n_completed", "prompt_tokens", "output_tokens", "rate"]
    return pl.DataFrame(answer_of("dynamo_replay.py", name, block_size, *files), schema=columns, orient="row")


def hit_rates(store) -> pl.DataFrame:
    """Of each conversation: the blocks model's, with no end of lifetime; whether one model served it all."""
    tokens = pl.col("prompt_tokens").sum(), (pl.col("hit_tokens").sum() / pl.col("prompt_tokens").sum()).alias("rate")
    report = store.read(VALIDATION_REPORT, store.partitions(VALIDATION_REPORT.name))
    rows = (
        report.filter(scope="conversation", lifetime="infinite")
        .group_by("conversation_id")
        .agg(pl.len(), *tokens, has_one_model=pl.col("model").n_unique() == 1)
    )
    return rows.sort("conversation_id")


@needs_dynamo
def test_dynamo_reuses_of_each_strict_trace_what_the_blocks_model_hits(store, tmp_path):
    """It replays all models of a trace on one cache; where there are several it may find more."""
    found = replayed(export(store, tmp_path, profile=Profile.STRICT), "weka")
    expected = hit_rates(store)
    assert found["n_requests"].to_list() == found["n_completed"].to_list() == expected["len"].to_list()
    assert found["prompt_tokens"].to_list() == expected["prompt_tokens"].to_list()
    more = found["rate"] - expected["rate"]
    assert more.min() > -1e-9
    assert more.filter(expected["has_one_model"]).max() < 1e-9


@needs_dynamo
def test_dynamo_reuses_of_an_agentic_mooncake_file_what_the_blocks_model_hits(store, tmp_path):
    """Its plays and models share one cache, but no block."""
    expected = hit_rates(store)
    found = replayed(export(store, tmp_path, format=Format.AGENTIC_MOONCAKE), "agentic_mooncake").row(0, named=True)
    tokens = expected["prompt_tokens"]
    assert (found["n_completed"], found["prompt_tokens"]) == (expected["len"].sum(), tokens.sum())
    assert found["rate"] == pytest.approx((expected["rate"] * tokens).sum() / tokens.sum(), abs=1e-9)


@needs_dynamo
@pytest.mark.parametrize("block_size", [64, 512])
def test_dynamo_reuses_of_a_mooncake_file_what_all_conversations_share(store, tmp_path, block_size):
    files = export(store, tmp_path, format=Format.MOONCAKE, block_size=block_size)
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    found = replayed(files, "mooncake", block_size).row(0, named=True)
    assert (found["n_completed"], found["prompt_tokens"]) == (len(rows), sum(row["input_length"] for row in rows))
    seen, n_hit = set(), 0
    for row in rows:
        n_full = row["input_length"] // block_size
        n_hit += next((n for n, number in enumerate(row["hash_ids"][:n_full]) if number not in seen), n_full)
        seen |= set(row["hash_ids"])
    assert found["rate"] == pytest.approx(n_hit * block_size / found["prompt_tokens"], abs=1e-9)
