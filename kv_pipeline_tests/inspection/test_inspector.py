from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.export.options import Format
from kv_pipeline.export.oracle_general import RECORD
from kv_pipeline.inspection.consumers import CONSUMERS, Consumer
from kv_pipeline.inspection.inspector import files_to_inspect, inspect_file
from kv_pipeline.inspection.row_rules import BlockSize
from kv_pipeline_tests.inspection.documents import jsonl, trace

MOONCAKE = {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]}
BAILIAN = {"chat_id": 0, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 33, "output_length": 1,
           "type": "text", "turn": 1, "hash_ids": [1, 2, 3]}  # fmt: skip
HEADER = {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 64, "hash_id_scope": "local",
          "source": {"format": "f", "digest": "d"}}  # fmt: skip
AGENTIC = {"request_id": "a", "play_id": "p", "session_id": "s", "model": "m", "input_length": 65, "output_length": 1,
           "hash_ids": [1, 2], "not_before_ms": 0.0}  # fmt: skip
WAITS = {"request_id": "a", "trigger": "completion", "delay_ms": 0.0, "relation": "sequence"}


@pytest.fixture
def inspected(tmp_path):
    def inspect(content):
        path = tmp_path / "file"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return inspect_file(path)

    return inspect


def told(inspection):
    return {consumer: [f"{path}: {why}" for path, why in found] for consumer, found in inspection.problems.items()}


@pytest.mark.parametrize("indent", [None, 2])
def test_traces(inspected, indent):
    found = inspected(json.dumps(trace(), indent=indent))
    assert found.format is Format.TRACE
    assert told(found) == {consumer: [] for consumer in CONSUMERS[Format.TRACE]}
    c = found.contents
    assert (c.n_traces, c.n_requests, c.n_subagents, c.prompt_tokens, c.output_tokens) == (1, 2, 1, 266, 14)
    assert (c.block_references, c.distinct_blocks, c.block_size, c.hash_id_scope, c.models) == (
        4,
        2,
        64,
        "local",
        ["m"],
    )


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([MOONCAKE, MOONCAKE | {"timestamp": 2500}], Format.MOONCAKE),
        ([BAILIAN, BAILIAN | {"chat_id": 1, "parent_chat_id": 0, "timestamp": 3.0}], Format.BAILIAN),
        ([HEADER, AGENTIC, AGENTIC | {"request_id": "b", "not_before_ms": 2500.0, "dependencies": [WAITS]}],
         Format.AGENTIC_MOONCAKE),
    ],
    ids=["mooncake", "bailian", "agentic"],
)  # fmt: skip
def test_lines(inspected, rows, kind):
    found = inspected(jsonl(*rows))
    assert found.format is kind
    assert told(found) == {consumer: [] for consumer in CONSUMERS[kind]}
    assert (found.contents.n_requests, found.contents.duration_s) == (2, 2.5)


@pytest.mark.parametrize(
    ("rows", "consumer", "problem"),
    [
        ([MOONCAKE | {"input_length": -1}], Consumer.MOONCAKE, "line 1: $.input_length"),
        ([MOONCAKE, MOONCAKE | {"hash_ids": [1]}], Consumer.MOONCAKE, "line 2: $.hash_ids: no block size fits"),
        ([MOONCAKE | {"session_id": "s", "delay": 5}], Consumer.AISIMULATE, "line 1: $.delay: a delay on the first"),
        ([MOONCAKE | {"session_id": "s", "timestamp": 9}, MOONCAKE | {"session_id": "s"}], Consumer.AISIMULATE,
         "line 2: $.timestamp: before"),
        ([MOONCAKE | {"text_input": "x"}], Consumer.AIPERF, "line 1: $.text_input"),
        ([BAILIAN, BAILIAN], Consumer.AIPERF, "line 2: $.chat_id: a chat_id that another row has"),
        ([BAILIAN | {"parent_chat_id": 7}], Consumer.AIPERF, "line 1: $.parent_chat_id: a parent"),
        ([HEADER | {"version": 1}, AGENTIC], Consumer.AISIMULATE, "line 1: $.version"),
        ([HEADER | {"hash_id_scope": "global"}], Consumer.AISIMULATE, "line 1: $.hash_id_scope"),
        ([HEADER, AGENTIC, AGENTIC | {"dependencies": [WAITS]}], Consumer.AISIMULATE, "line 3: $.request_id: a req"),
        ([HEADER, AGENTIC, AGENTIC | {"request_id": "b"}], Consumer.AISIMULATE, "line 3: $.dependencies: a second"),
        ([HEADER, AGENTIC | {"dependencies": [WAITS]}], Consumer.AISIMULATE, "line 2: $.dependencies[0].request_id"),
        ([HEADER, AGENTIC | {"hash_ids": [1]}], Consumer.AISIMULATE, "line 2: $.hash_ids: not one for each block"),
    ],
)  # fmt: skip
def test_where_a_line_is_wrong(inspected, rows, consumer, problem):
    found = inspected(jsonl(*rows))
    assert any(line.startswith(problem) for line in told(found)[consumer]), told(found)
    assert not found.is_valid_for(consumer)


def test_a_line_that_is_no_json(inspected):
    found = inspected(jsonl(MOONCAKE) + "{oops\n\n" + jsonl(MOONCAKE))
    assert told(found)[Consumer.MOONCAKE] == ["line 2: $: no JSON"]
    assert found.contents.n_requests == 2


def records(*rows):
    return np.array(list(rows), dtype=RECORD).tobytes()


def test_records(inspected):
    found = inspected(records((0, 1, 64, 3), (1, 2, 64, -1), (4, 1, 64, -1)))
    assert (found.format, told(found)) == (Format.ORACLE_GENERAL, {Consumer.LIBCACHESIM: []})
    c = found.contents
    assert (c.block_references, c.distinct_blocks, c.block_size, c.duration_s) == (3, 2, 64, 4.0)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([(5, 1, 64, -1), (4, 2, 64, -1)], "record 2: a time before that of the record before (1 times)"),
        ([(0, 1, 0, -1)], "record 1: size 0, which is skipped (1 times)"),
        ([(0, 1, 64, 2), (0, 2, 64, -1)], "record 1: a next use that is not one of the same object (1 times)"),
        ([(0, 1, 64, 9), (0, 1, 64, 1)], "record 1: a next use that is not one of the same object (2 times)"),
    ],
)
def test_records_that_would_be_misread(inspected, rows, problem):
    assert told(inspected(records(*rows)))[Consumer.LIBCACHESIM] == [problem]


def test_another_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(path)
    found = inspect_file(path)
    assert (found.format, found.is_valid_for(None)) == (Format.PARQUET, False)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PAR1", b"PAR1" * 9, b"{", b"[]", b'{"requests":', b"\xff" * 25, b"{\xff}\n", b"{" * 5000],
    ids=repr,
)  # fmt: skip
def test_what_is_nothing_is_invalid_for_all(inspected, content):
    found = inspected(content)
    assert found.format is None
    assert set(found.problems) == {consumer for consumers in CONSUMERS.values() for consumer in consumers}
    assert not found.is_valid_for(None)


@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_no_content_is_an_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    for start in (b"", b"{", json.dumps(MOONCAKE).encode() + b"\n", json.dumps(HEADER).encode() + b"\n", b"PAR1"):
        path.write_bytes(start + content)
        found = inspect_file(path)
        assert found.problems


def test_deeply_nested_traces_are_judged(inspected):
    content = '{"requests":[' + '{"type":"subagent","requests":[' * 400 + "]}" * 400 + "]}"
    assert not inspected(content).is_valid_for(None)


@given(st.integers(1, 600), st.lists(st.integers(1, 5000), min_size=1))
def test_the_block_size_is_among_those_that_fit(size, prompts):
    known = BlockSize()
    for tokens in prompts:
        assert known.add(-(-tokens // size), tokens)
    assert known.least <= size
    assert known.most is None or size <= known.most
    assert known.likely is None or known.least <= known.likely <= known.most


def test_folders(tmp_path):
    for name in ("b.json", "a.json", "c.jsonl", "d.parquet", "e.oracleGeneral", "f.txt"):
        (tmp_path / name).write_text("")
    assert [p.name for p in files_to_inspect([tmp_path, tmp_path / "f.txt"])] == [
        "a.json", "b.json", "c.jsonl", "d.parquet", "e.oracleGeneral", "f.txt",
    ]  # fmt: skip
