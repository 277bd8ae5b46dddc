from __future__ import annotations

import json

import pytest

from kv_pipeline.core.conversation_blocks import fleet_reuse
from kv_pipeline.core.reuse_curves import lifetime_hits
from kv_pipeline.errors import InputError, UsageError
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline.sources.trace_json.reader import read_trace, trace_files

CONTENT = "the harbour at night"


def request(t, hash_ids, *, kind="s", model="m", tokens=None, **more):
    tokens = 64 * len(hash_ids) + 5 if tokens is None else tokens
    return {"t": t, "type": kind, "model": model, "in": tokens, "out": 7, "hash_ids": hash_ids, "stop": "", **more}


def subagent(t, *requests, agent_id="agent_001"):
    return {"t": t, "type": "subagent", "agent_id": agent_id, "subagent_type": "Explore", "requests": list(requests)}


def write(path, *requests, **more):
    trace = {"id": "trace_0001", "models": ["m"], "block_size": 64, "hash_id_scope": "local", "requests": requests}
    path.write_text(json.dumps(trace | more))
    return path


def paths_of(trace):
    return [trace.blocks.new_blocks[path].tolist() for path in trace.blocks.paths()]


def test_requests_of_all_agents_by_time(tmp_path):
    nested = subagent(2.0, request(0.0, [1, 5], model="n"), agent_id="below")
    trace = read_trace(
        write(
            tmp_path / "a.json",
            request(0.0, [1, 2], kind="n"),
            subagent(10.0, request(0.0, [1, 2, 3]), nested, request(30.0, [1, 2, 4])),
            request(20.0, [1, 2, 6]),
        )
    )
    blocks = trace.blocks
    assert blocks.times_s.tolist() == [0.0, 10.0, 12.0, 20.0, 40.0]
    assert list(blocks.agent_ids) == ["main", "agent_001", "below", "main", "agent_001"]
    assert list(blocks.models) == ["m", "m", "n", "m", "m"]
    assert paths_of(trace) == [[1, 2], [1, 2, 3], [1, 5], [1, 2, 6], [1, 2, 4]]
    assert blocks.agent_shared_blocks.tolist() == [0, 0, 0, 2, 2]
    assert blocks.prompt_tokens.tolist() == [133, 197, 133, 197, 197]
    assert (trace.n_subagents, trace.output_tokens, blocks.conversation_id) == (2, 35, "trace_0001")
    assert trace.notices() == []


@pytest.mark.parametrize(("basis", "first"), [(NestedTimes.RELATIVE, 0.0), (NestedTimes.ABSOLUTE, 100.0)])
def test_nested_times_are_understood_either_way(tmp_path, basis, first):
    path = write(
        tmp_path / "a.json",
        request(0.0, [1]),
        subagent(100.0, request(first, [1, 2]), request(first + 5, [1, 2, 3])),
        request(102.0, [1, 4]),
    )
    assert read_trace(path).blocks.times_s.tolist() == [0.0, 100.0, 102.0, 105.0]
    assert read_trace(path, basis).blocks.times_s.tolist() == [0.0, 100.0, 102.0, 105.0]


def test_the_basis_can_be_said(tmp_path):
    path = write(tmp_path / "a.json", request(0.0, [1]), subagent(100.0, request(3.0, [2])))
    assert read_trace(path, NestedTimes.ABSOLUTE).blocks.times_s.tolist() == [0.0, 3.0]


def test_sub_agents_without_a_name_are_different_agents(tmp_path):
    trace = read_trace(
        write(
            tmp_path / "a.json",
            request(0.0, [1]),
            subagent(1.0, request(0.0, [2]), agent_id=""),
            subagent(1.0, request(1.0, [2]), agent_id=""),
        )
    )
    assert len(set(trace.blocks.agent_ids)) == 3
    assert trace.blocks.agent_shared_blocks.tolist() == [0, 0, 0]


def test_ids_of_partial_blocks_are_left_out_and_said(tmp_path):
    trace = read_trace(write(tmp_path / "a.json", request(0.0, [1, 2, 3], tokens=130)))
    assert paths_of(trace) == [[1, 2]]
    assert [(skip.reason, skip.is_left_out) for skip in trace.notices()] == [("surplus_ids", False)]


def test_unchained_ids_are_chained_and_said(tmp_path):
    trace = read_trace(write(tmp_path / "a.json", request(0.0, [1, 2]), request(1.0, [3, 2]), hash_id_scope="global"))
    assert len(trace.blocks.new_blocks) == 4
    assert trace.blocks.has_own_ids
    assert [(skip.reason, skip.is_left_out) for skip in trace.notices()] == [("unchained_ids", False)]


@pytest.mark.parametrize(("scope", "n_hits"), [("local", 0), ("global", 2)])
def test_global_ids_are_shared_between_files(tmp_path, scope, n_hits):
    files = [write(tmp_path / f"{n}.json", request(float(n), [1, 2]), hash_id_scope=scope) for n in range(2)]
    reuse = fleet_reuse([read_trace(path).blocks for path in files])
    assert lifetime_hits(reuse, [9e9]).tolist() == [n_hits]


def test_timestamps_give_the_clock(tmp_path):
    stamped = request(30.0, [1], timestamp="2026-01-01T00:00:40Z")
    assert read_trace(write(tmp_path / "a.json", stamped)).blocks.starts_at_s == 1767225610.0
    assert read_trace(write(tmp_path / "b.json", request(30.0, [1]))).blocks.starts_at_s is None
    odd = request(30.0, [1], timestamp="yesterday")
    assert read_trace(write(tmp_path / "c.json", odd)).blocks.starts_at_s is None


BAD = {
    "empty": b"",
    "cut": b'{"id": "trace_0001", "block_size": 64, "requests": [{"t": 0.0, "ty',
    "not json": CONTENT.encode(),
    "no utf-8": b'{"id": "\xff\xfe"}',
    "another format": json.dumps({"messages": [CONTENT]}).encode(),
    "unknown type": json.dumps({"block_size": 64, "requests": [{"t": 0, "type": CONTENT}]}).encode(),
    "wrong id": json.dumps({"block_size": 64, "requests": [request(0.0, [CONTENT], tokens=64)]}).encode(),
    "negative id": json.dumps({"block_size": 64, "requests": [request(0.0, [-1], tokens=64)]}).encode(),
    "long id": json.dumps({"block_size": 64, "requests": [request(0.0, [2**64], tokens=64)]}).encode(),
    "no block size": json.dumps({"block_size": 0, "requests": []}).encode(),
    "other scope": json.dumps({"block_size": 64, "requests": [], "hash_id_scope": CONTENT}).encode(),
    "deep": (b'{"block_size": 64, "requests": ' + b'[{"t": 0, "type": "subagent", "requests": ' * 100_000),
    "negative prompt": json.dumps({"block_size": 64, "requests": [request(0.0, [], tokens=-1)]}).encode(),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_bad_files_are_named_with_a_remedy_and_without_content(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert "Leave the file out" in str(caught.value)
    assert CONTENT not in str(caught.value)


def test_a_trace_without_requests_is_an_empty_one(tmp_path):
    trace = read_trace(write(tmp_path / "a.json"))
    assert (len(trace.blocks.times_s), trace.blocks.n_blocks.sum(), trace.notices()) == (0, 0, [])


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(InputError, match="unreadable_file"):
        read_trace(tmp_path / "none.json")


def test_files_of_folders_and_files_themselves(tmp_path):
    for name in ("analysis", "empty"):
        (tmp_path / name).mkdir()
    for name in ("b.json", "a.json", "notes.txt", "analysis/a.json"):
        (tmp_path / name).touch()
    single = tmp_path / "notes.txt"
    assert trace_files([tmp_path, single, tmp_path / "a.json"]) == [tmp_path / "a.json", tmp_path / "b.json", single]
    with pytest.raises(UsageError, match="no file or folder"):
        trace_files([tmp_path / "none"])
    with pytest.raises(UsageError, match="kv-pipeline export"):
        trace_files([tmp_path / "empty"])
