"""Trace files as input: what they leave out is worked out, what is wrong with them is said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.errors import InputError
from kv_pipeline.export.exporter import NO_PROMPTS, export_conversations
from kv_pipeline.export.options import ExportOptions, Format, Profile
from kv_pipeline.export.trace_conversations import TraceConversations
from kv_pipeline.inspection.consumers import Consumer
from kv_pipeline.inspection.trace_rules import entries, trace_problems
from kv_pipeline.sources.trace_json.whole import read_whole
from kv_pipeline_tests.inspection.documents import SPOILED, request, spoiled, subagent, trace
from kv_pipeline_tests.inspection.test_trace_rules import JSON


@pytest.fixture
def exported(tmp_path):
    def export(*documents, **options):
        (tmp_path / "in").mkdir(exist_ok=True)
        files = [tmp_path / "in" / f"{n}.json" for n, _ in enumerate(documents)]
        for path, document in zip(files, documents, strict=True):
            path.write_text(json.dumps(document))
        wanted = ExportOptions(**options)
        return export_conversations(TraceConversations(files, wanted), tmp_path / "out", wanted)

    return export


def rows(result):
    return [json.loads(line) for line in result.files[0].read_text().splitlines()]


def reasons(result):
    return [(notice.reason, notice.is_left_out) for notice in result.notices]


def test_local_ids_of_two_files_are_different_blocks(exported):
    first, second = rows(exported(trace(request()), trace(request(), id="b"), format=Format.MOONCAKE, block_size=64))
    assert not set(first["hash_ids"]) & set(second["hash_ids"])


def test_global_ids_of_two_files_are_the_same_blocks(exported):
    documents = [trace(request(), id=name, hash_id_scope="global") for name in "ab"]
    first, second = rows(exported(*documents, format=Format.MOONCAKE, block_size=64))
    assert first["hash_ids"][:2] == second["hash_ids"][:2]
    assert first["hash_ids"][2] != second["hash_ids"][2], "nobody knows whether the rest is the same"


def test_blocks_without_an_id_get_numbers_of_their_own(exported):
    document = trace(request(hash_ids=[1]), request(9, hash_ids=[1]))
    first, second = rows(exported(document, format=Format.MOONCAKE, block_size=64))
    assert (first["hash_ids"], second["hash_ids"]) == ([1, 2, 3], [1, 4, 5])


def test_a_tail_that_small_blocks_fill_is_known(exported):
    document = trace(request(**{"in": 192}, hash_ids=[1, 2, 3]), request(9, **{"in": 192}, hash_ids=[1, 2, 3]))
    first, second = rows(exported(document, format=Format.MOONCAKE, block_size=128))
    assert first["hash_ids"] == second["hash_ids"] == [1, 2]


def test_ids_that_do_not_chain_and_ids_too_many_are_noted(exported):
    document = trace(request(hash_ids=[1, 2]), request(9, hash_ids=[2, 1, 7, 8]))
    result = exported(document, format=Format.PARQUET)
    assert reasons(result) == [("unchained_ids", False), ("surplus_ids", False)]


def test_an_agent_id_that_comes_again_is_another_agent(exported):
    document = trace(request(), subagent(request()), subagent(request(), t=20.0), subagent(request(), agent_id="main"))
    sessions = {row["session_id"] for row in rows(exported(document, format=Format.MOONCAKE))}
    assert sessions == {
        "trace_0001", "trace_0001/agent_001", "trace_0001/agent_001~2", "trace_0001/main~2",
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Format.MOONCAKE, Format.BAILIAN, Format.AGENTIC_MOONCAKE])
def test_requests_of_no_tokens_are_left_out_and_counted(exported, kind):
    empty = request(**{"in": 0}, hash_ids=[])
    result = exported(trace(request(), empty), trace(empty, id="b"), format=kind)
    assert (result.n_requests, result.left_out) == (1, {NO_PROMPTS: 1})
    assert result.not_held[NO_PROMPTS] == 1


def test_missing_facts_are_worked_out(exported, tmp_path):
    late = request(10.0)
    del late["think_time"]
    agent = subagent(request(), request(4.0), duration_ms=None, total_tokens=None, tool_use_count=None)
    result = exported(trace(request(), late, agent), profile=Profile.STRICT)
    document = json.loads(result.files[0].read_text())
    assert trace_problems(Consumer.STRICT, document) == []
    assert document["requests"][2]["think_time"] == 8.5
    told = document["requests"][1]
    assert (told["duration_ms"], told["total_tokens"], told["tool_use_count"]) == (5500, 140, 0)


def test_files_with_another_block_size_than_the_first_are_left_out(exported):
    documents = [trace(request()), trace(request(), id="b", block_size=48)]
    assert reasons(exported(*documents, format=Format.AGENTIC_MOONCAKE)) == [("other_block_size", True)]
    assert reasons(exported(*documents, format=Format.PARQUET)) == []


def test_nested_sub_agents_are_counted_where_they_become_siblings(exported):
    document = trace(request(), subagent(request(), subagent(request(), agent_id="below")))
    assert exported(document, profile=Profile.STRICT).not_held == {"nested sub-agents told as siblings": 1}
    assert exported(document).not_held == {}


@given(JSON, st.sampled_from(list(SPOILED.values())))
def test_any_document_is_read_whole_or_refused(tmp_path_factory, value, place):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    for document in (value, spoiled(place[0], value), spoiled(*place)):
        path.write_text(json.dumps(document))
        try:
            found = read_whole(path)
        except InputError as error:
            assert error.reason in ("no_trace", "bad_block_id")
        else:
            n_requests = sum(not entry.is_subagent for entry in entries(document))
            assert len(found.rows) == len(found.paths) == n_requests
