"""Our judgement of trace files and Dynamo's own, which is AISimulate's reader, on the same documents."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kv_pipeline.inspection.consumers import Consumer
from kv_pipeline.inspection.trace_rules import trace_problems
from kv_pipeline_tests.inspection.documents import SPOILED, request, spoiled, subagent, trace
from kv_pipeline_tests.readers import answer_of, needs_dynamo

TRACES = Path(os.environ.get("KV_PIPELINE_TRACES") or "published traces are not here")
OTHERS = [
    trace(),
    trace(models=["x"]),
    trace(models=[]),
    trace(models=None),
    trace(request(), subagent(request(model="z"))),
    trace(subagent(request()), request()),
    trace(request(), subagent()),
    trace(request(**{"in": 0, "hash_ids": []})),
    trace(request(hash_ids=[1, 2, 3, 4])),
    trace(request(hash_ids=[1])),
    trace(request(api_time=-1)),
    trace(request(), request(3.0, **{"in": 300, "hash_ids": [1, 2, 3, 4]})),
]


def judged(paths: list[Path]) -> list[tuple[bool, bool]]:
    """Whether we find problems, and whether Dynamo does."""
    answers = answer_of("dynamo_replay.py", "weka", 64, *paths)
    ours = [trace_problems(Consumer.AISIMULATE, json.loads(path.read_bytes())) for path in paths]
    return [(bool(problems), isinstance(answer, str)) for problems, answer in zip(ours, answers, strict=True)]


@needs_dynamo
def test_documents_are_refused_that_dynamo_refuses(tmp_path):
    paths = []
    for number, document in enumerate(OTHERS + [spoiled(*place) for place in SPOILED.values()]):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(document))
    found = judged(paths)
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]
    assert {ours for ours, _ in found} == {True, False}


@needs_dynamo
@pytest.mark.skipif(not TRACES.is_dir(), reason="set KV_PIPELINE_TRACES to the folder of the published traces")
def test_published_traces_are_refused_that_dynamo_refuses():
    """Takes a minute and a half."""
    found = judged(sorted(TRACES.rglob("*.json")))
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]
