"""`kv-pipeline analyze` on exports of the example, whose hits the validation reports know too."""

from __future__ import annotations

import json

import pytest

from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import ExportOptions, Profile
from kv_pipeline.steps.reuse import fleet_reuse_frames
from kv_pipeline.store import Store
from kv_pipeline_tests.sources.factories import listing


@pytest.fixture(scope="module", params=["upstream", "strict"])
def traces(request, example_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("traces")
    export_traces(Store.open(example_store), out, ExportOptions(profile=Profile(request.param)))
    return out


def test_conversations_alone_hit_what_validation_says(command, example_store, traces):
    found = {trace["trace_id"]: trace for trace in command("analyze", traces, "--json").json["traces"]}
    report = command("validate", "--store", example_store, "--json").json["conversations"]
    pairs = [(row, found[row["conversation_id"].replace("/", "_")]) for row in report if row["scope"] == "conversation"]
    compared = [(row, trace) for row, trace in pairs if row["n_requests"] == trace["n_requests"]]  # all were billed
    assert [trace[f"hit_tokens_{row['lifetime']}"] for row, trace in compared] == [
        row["hit_tokens"] for row, _ in compared
    ]
    assert [trace["prompt_tokens"] for _, trace in compared] == [row["prompt_tokens"] for row, _ in compared]
    assert len(compared) == 3 * 8


def test_the_document(command, traces):
    document = command("analyze", traces, "--json", "--kv-model", "deepseek-v3", "--limit", "2").json
    total = document["total"]
    assert (document["format"], document["scope"]) == ("kv_pipeline.analysis/1", "conversation")
    assert (document["kv_model"], document["kv_bytes_per_token"]) == ("deepseek-v3", 70272)
    assert len(document["traces"]) == 2
    assert (total["n_traces"], document["notices"]) == (8, [])
    for part in (total, *document["traces"]):
        last = part["ttl_curve"][-1]
        assert (last["lifetime"], last["lifetime_s"]) == ("infinite", None)
        assert last["hit_tokens"] == part["hit_tokens_infinite"] == part["capacity_curve"][-1]["lru_hit_tokens"]
        assert part["capacity_curve"][0]["capacity_gb"] == 16 * document["block_size"] * 70272 / 1e9
        assert part["smallest_capacities"]["no_eviction_blocks"] <= part["capacity_curve"][-1]["capacity_blocks"]
    assert set(document["shared_with_previous"]) == {"min", "p25", "median", "p75", "max", "mean"}


def test_for_people(command, traces):
    done = command("analyze", traces, "--scope", "fleet", "--limit", "1")
    assert (done.code, done.err) == (0, "")
    for text in (
        "8 traces, each alone",
        "Lifetimes (all traces share, as if all began at once)",
        "KV cache of llama-3.1-70b",
        "Belady",
        "60 min",
    ):
        assert text in done.out


def test_a_fleet_of_global_ids_hits_more_than_its_conversations(command, traces):
    alone, together = (
        command("analyze", traces, "--json", "--scope", scope).json["total"]["ttl_curve"][-1]["hit_tokens"]
        for scope in ("conversation", "fleet")
    )
    is_global = json.loads(next(traces.glob("*.json")).read_text())["hash_id_scope"] == "global"
    assert (together > alone) == is_global
    assert together >= alone


def test_traces_with_a_clock_are_the_fleet_that_the_store_knows(command, example_store, tmp_path):
    command("export", "--store", example_store, "--out", tmp_path, "--absolute-timestamps")
    document = command("analyze", tmp_path, "--json", "--scope", "fleet", "--kv-bytes-per-token", "1e6").json
    total = document["total"]
    assert document["has_clock"] is True
    assert "Lifetimes (all traces share)" in command("analyze", tmp_path, "--scope", "fleet").out
    frames = fleet_reuse_frames(Store.open(example_store), 1e6)
    hits = [(row["lifetime"], row["hit_tokens"], row["prefill_blocks"]) for row in total["ttl_curve"]]
    assert hits == frames.ttl_curve.select("lifetime", "hit_tokens", "prefill_blocks").rows()
    assert total["capacity_curve"] == frames.capacity_curve.to_dicts()
    assert total["block_prefills"] == frames.block_prefills.to_dicts()
    assert total["smallest_capacities"] == frames.smallest_capacities._asdict()


def test_bad_files_are_left_out_counted_and_named(command, traces, tmp_path):
    good = next(traces.glob("*.json"))
    other = json.loads(good.read_text()) | {"block_size": 32}
    (tmp_path / "a.json").write_bytes(good.read_bytes())
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text(json.dumps(other))
    done = command("analyze", tmp_path, "--json")
    assert done.code == 1
    left_out = [notice["reason"] for notice in done.json["notices"] if notice["is_left_out"]]
    assert left_out == ["no_trace", "other_block_size"]
    assert done.json["total"]["n_traces"] == 1
    assert f"Left out: {tmp_path / 'b.json'}" in command("analyze", tmp_path).out.replace("\n", " ")


def test_nothing_but_bad_files_is_still_said(command, tmp_path):
    (tmp_path / "b.json").write_text("{")
    for arguments in ((), ("--json",), ("--scope", "fleet")):
        assert command("analyze", tmp_path, *arguments).code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no file or folder"),
        ([".", "--kv-model", "gpt-9"], "No KV figures"),
        ([".", "--kv-model", "kimi-k2", "--kv-bytes-per-token", "5"], "exclude each other"),
    ],
)
def test_usage(command, arguments, message):
    done = command("analyze", *arguments)
    assert done.code == 2
    assert message in done.err


def test_nothing_is_written(command, traces):
    before = listing(traces)
    command("analyze", traces)
    assert listing(traces) == before
