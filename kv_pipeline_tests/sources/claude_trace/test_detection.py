from __future__ import annotations

import json
import os

import pytest

from kv_pipeline.sources.claude_trace.detection import is_log
from kv_pipeline_tests.sources.factories import make_log, make_pair, make_record


@pytest.mark.parametrize(
    ("lines", "is_one"),
    [
        ([make_pair()], True),
        ([json.dumps({"logged_at": "x"} | make_pair())], True),
        ([json.dumps({"response": None, "request": {}})], True),
        ([b"\xef\xbb\xbf" + json.dumps(make_pair()).encode()], True),
        (["half a line of JSON\"}", make_pair()], True),
        (["", "  " + json.dumps(make_pair(), indent=None)], True),
        ([make_record()], False),
        ([make_record(toolUseResult={"request": {}}, message={"content": '{"request":{}'})], False),
        ([{"request": "a text"}], False),
        ([{"display": "history of a client", "request": {}}], False),
        ([], False),
        ([b"\x00" * 99], False),
        (["x" * 70_000, make_pair()], False),
    ],
)  # fmt: skip
def test_logs_are_told_by_their_beginning(tmp_path, lines, is_one):
    assert is_log(make_log(tmp_path / "x.jsonl", lines)) is is_one


def test_what_is_no_file_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert not is_log(tmp_path / "pipe.jsonl")
    assert not is_log(tmp_path)
    assert not is_log(tmp_path / "gone.jsonl")
