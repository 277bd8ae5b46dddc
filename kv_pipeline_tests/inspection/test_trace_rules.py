from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.export.options import Format
from kv_pipeline.inspection.consumers import CONSUMERS, Consumer
from kv_pipeline.inspection.problems import json_path, schema
from kv_pipeline.inspection.trace_rules import trace_problems
from kv_pipeline_tests.inspection.documents import INNER, REQUEST, SPOILED, SUBAGENT, request, spoiled, subagent, trace

READERS = CONSUMERS[Format.TRACE]
KCT, AIPERF, AISIM, STRICT = Consumer.KV_CACHE_TESTER, Consumer.AIPERF, Consumer.AISIMULATE, Consumer.STRICT


def refused_by(document):
    return {reader: [path for path, _ in found] for reader in READERS if (found := trace_problems(reader, document))}


def test_a_sound_trace_is_for_everybody():
    assert refused_by(trace()) == {}


@pytest.mark.parametrize(
    ("place", "value", "readers", "path"),
    [
        (["_analysis"], {}, {STRICT, AIPERF}, "$"),
        ([*REQUEST, "timestamp"], "2026", {STRICT, AIPERF}, "$.requests[0]"),
        (["hash_id_scope"], "global", {STRICT, AIPERF, AISIM}, "$.hash_id_scope"),
        (["block_size"], 0, set(READERS), "$.block_size"),
        ([*INNER, "in"], 0, {STRICT, AIPERF, AISIM}, "$.requests[1].requests[0].in"),
        ([*REQUEST, "type"], "n", {STRICT, AIPERF}, "$.requests[0].ttft"),
        ([*INNER, "hash_ids", 1], "two", set(READERS), "$.requests[1].requests[0].hash_ids[1]"),
        ([*INNER, "model"], "small", {STRICT, AISIM}, "$.requests[1].requests[0].model"),
        ([*SUBAGENT, "status"], "failed", {STRICT, AISIM}, "$.requests[1].status"),
        ([*SUBAGENT, "requests"], [], {STRICT, AISIM}, "$.requests[1].requests"),
        ([*SUBAGENT, "subagent_type"], None, {STRICT, AIPERF, AISIM}, "$.requests[1].subagent_type"),
        ([*SUBAGENT, "duration_ms"], None, {STRICT}, "$.requests[1].duration_ms"),
        (INNER, subagent(request()), {STRICT, AIPERF, AISIM}, "$.requests[1].requests[0].type"),
        ([*REQUEST, "api_time"], -1, {STRICT, AISIM}, "$.requests[0].api_time"),
        ([*REQUEST, "hash_ids"], [1], {STRICT}, "$.requests[0].hash_ids"),
        ([*REQUEST, "hash_ids"], [1, 2, 3, 4], {STRICT, AIPERF}, "$.requests[0].hash_ids"),
        (["requests"], [subagent(request()), request()], {STRICT, AISIM}, "$.requests[0]"),
        (["requests"], [], {STRICT, AIPERF, AISIM, KCT}, "$.requests"),
    ],
)  # fmt: skip
def test_where_and_for_whom(place, value, readers, path):
    found = refused_by(spoiled(place, value))
    assert set(found) == readers
    assert all(path in paths for paths in found.values())


def test_an_id_of_a_partial_block_can_not_be_that_of_a_full_one():
    document = trace(request(hash_ids=[1, 2, 3]), request(9, **{"in": 192}, hash_ids=[1, 2, 3]))
    assert refused_by(document)[AIPERF] == ["$.requests[1].hash_ids[2]"]


def test_values_are_not_repeated():
    document = spoiled([*REQUEST, "model"], ["secret"])
    assert "secret" not in json.dumps([trace_problems(reader, document) for reader in READERS])


def test_places_as_json_paths():
    assert json_path([]) == "$"
    assert json_path(["a", 0, "b c", "0"]) == '$.a[0]["b c"]["0"]'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["requests", "type", "in", "hash_ids", "block_size", "models", "t", "x"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(list(SPOILED.values())))
def test_documents_of_any_shape_are_judged(value, place):
    for document in (value, spoiled(place[0], value)):
        for reader in READERS:
            assert all(path.startswith("$") and why for path, why in trace_problems(reader, document))


@given(st.sampled_from(list(SPOILED.values())))
def test_what_strict_allows_everybody_takes(place):
    found = refused_by(spoiled(*place))
    assert STRICT in found or not found


@pytest.mark.parametrize("reader", READERS)
def test_schemas_say_what_they_are(reader):
    found = schema(f"trace-{reader}")
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert found["title"]
    assert found["description"]
