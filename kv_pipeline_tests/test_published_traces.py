"""Published traces of kv-cache-tester. Runs where KV_PIPELINE_TRACES names a folder of them (739, or some)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kv_pipeline.core.reuse_curves import lru_hits
from kv_pipeline.export.exporter import export_conversations
from kv_pipeline.export.options import ExportOptions, Format, HashIdScope, Profile
from kv_pipeline.export.trace_conversations import TraceConversations
from kv_pipeline.reports.analysis_options import Scope
from kv_pipeline.reports.trace_analysis import analyse_traces, rate_distribution
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline.sources.trace_json.reader import read_trace, trace_files
from kv_pipeline_tests import oracle_reuse
from kv_pipeline_tests.export import truth

VARIABLE = "KV_PIPELINE_TRACES"
TRACES = Path(os.environ.get(VARIABLE) or "published traces are not here")
CAPACITIES = [500, 1500, 4000]

pytestmark = pytest.mark.skipif(
    not TRACES.is_dir(), reason=f"published traces are not in the repository: set {VARIABLE} to a folder of them"
)


@pytest.fixture(scope="module")
def analysis():
    return analyse_traces(trace_files([TRACES]), Scope.FLEET, NestedTimes.AUTO, lambda _: None)


def test_all_are_read_whole(analysis):
    n_requests = n_references = 0
    for path in TRACES.glob("*.json"):
        for entry in json.loads(path.read_bytes())["requests"]:
            requests = entry["requests"] if entry["type"] == "subagent" else [entry]
            n_requests += len(requests)
            n_references += sum(len(request["hash_ids"]) for request in requests)
    total = analysis.total()
    assert (total["n_requests"], total["block_references"]) == (n_requests, n_references)
    assert analysis.notices == []


def test_rates_agree_with_the_published_ones(analysis):
    """Of all 739: P25 92, median 96, P75 97, mean 93 %; a part of them may differ by a few points."""
    shares = rate_distribution(analysis.trace_rows()["shared_with_previous_rate"].to_list())
    published = {"p25": 0.92, "median": 0.96, "p75": 0.97, "mean": 0.93}
    assert {name: shares[name] for name in published} == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize(("name", "rate"), [("trace_0002", 0.93), ("trace_0004", 0.96)])
def test_rates_agree_with_another_simulator(analysis, name, rate):
    """AISimulate 0.13 replayed these traces with an unbounded prefix cache; it prints two decimals."""
    rows = {row["trace_id"]: row for row in analysis.trace_rows().to_dicts()}
    if name not in rows:
        pytest.skip(f"{name} is not in {TRACES}")
    assert round(rows[name]["hit_rate_infinite"], 2) == rate


def test_small_ones_hit_what_a_list_hits(analysis):
    """The obvious cache takes minutes for the others."""
    small = [n for n, reuse in enumerate(analysis.reuses) if reuse.n_references < 8000]
    assert small
    for number in small:
        blocks = read_trace(trace_files([TRACES])[number]).blocks
        uses = [(m, 0, path.tolist()) for m, path in zip(blocks.models, blocks.paths(), strict=True)]
        slow = [oracle_reuse.lru_hit_blocks(uses, capacity) for capacity in CAPACITIES]
        assert lru_hits(analysis.reuses[number], CAPACITIES).tolist() == slow


@pytest.fixture(scope="module")
def requests():
    return truth.of_traces(trace_files([TRACES]))


@pytest.mark.parametrize(
    ("kind", "block_size"), [(Format(name), 64) for name in truth.ASSERTIONS] + [(Format.MOONCAKE, 512)]
)
def test_every_format_holds_them(requests, tmp_path, kind, block_size):
    options = ExportOptions(format=kind, block_size=block_size)
    result = export_conversations(TraceConversations(trace_files([TRACES]), options), tmp_path, options)
    assert (len(result.traces), result.left_out, result.notices) == (len(trace_files([TRACES])), {}, [])
    truth.ASSERTIONS[kind](result.files[0], requests, block_size)


@pytest.mark.parametrize("profile", list(Profile))
def test_as_trace_json_they_are_as_they_were(tmp_path, profile):
    options = ExportOptions(profile=profile, hash_ids=HashIdScope.LOCAL)
    files = trace_files([TRACES])
    result = export_conversations(TraceConversations(files, options), tmp_path, options)
    again = truth.of_traces(result.files)
    told = [(r._replace(prefixes={}), list(r.prefixes)) for r in truth.of_traces(files)]
    assert [(r._replace(prefixes={}), list(r.prefixes)) for r in again] == told
    blocks = [[number for _, number in r.prefixes.values()] for r in again]
    keys = [list(r.prefixes.values()) for r in truth.of_traces(files)]
    for trace in {r.trace for r in again}:
        own = [n for n, r in enumerate(again) if r.trace == trace]
        truth.assert_same_blocks([blocks[n] for n in own], [keys[n] for n in own])
