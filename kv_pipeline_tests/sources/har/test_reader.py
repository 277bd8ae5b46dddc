from __future__ import annotations

import base64
import gzip
import json
import os
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kv_pipeline.sources.anthropic_messages.rows import Recording
from kv_pipeline.sources.claude_trace.reader import LogReader
from kv_pipeline.sources.har.detection import is_har
from kv_pipeline.sources.har.reader import HarReader
from kv_pipeline_tests.sources.factories import (
    CREDENTIAL,
    SALT,
    make_body,
    make_entry,
    make_har,
    make_log,
    make_pair,
    read_checked,
    reasons,
)
from kv_pipeline_tests.strategies import json_values

START = {"type": "message_start", "message": {"id": "msg_7", "usage": {"input_tokens": 5}}}
DELTA = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}}
EVENTS = "".join(f"event: {event['type']}\r\ndata: {json.dumps(event)}\r\n\r\n" for event in (START, DELTA))
BROTLI = b"\x8b\x10\x80" + b'{"id": "msg_7"}' + b"\x03"  # short texts stay as they are in `br`


def read(path: Path) -> tuple[Recording, pl.DataFrame]:
    """What a file holds, and its segments, both checked against their models."""
    return read_checked(HarReader, "ada/x.har", path)


def read_entries(tmp_path: Path, *entries: Any) -> Recording:
    return read(make_har(tmp_path / "x.har", entries))[0]


def only_row(tmp_path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    content = read_entries(tmp_path, entry)
    assert content.skips == []
    return content.requests.row(0, named=True)


def encoded(body: bytes) -> dict[str, str]:
    return {"text": base64.b64encode(body).decode(), "encoding": "base64"}


def test_an_entry_is_a_request(tmp_path):
    row = only_row(tmp_path, make_entry())
    assert (row["request_id"], row["row_id"], row["outcome"], row["message_id"]) == ("req_msg_1", 1, "ok", "msg_1")
    assert row["requested_at_utc"] == datetime(2025, 5, 29, 21, 38, 24, 250_000, UTC)
    assert row["completed_at_utc"] == datetime(2025, 5, 29, 21, 38, 25, 500_000, UTC)
    assert (row["api_time_s"], row["ttft_s"], row["endpoint"]) == (1.25, 0.8, "/v1/messages")
    assert (row["recorded_by"], row["session_id"], row["named_agent_id"]) == ("har", None, None)


def test_a_har_says_what_a_log_of_the_same_traffic_says(tmp_path):
    segments: list[pl.DataFrame] = []
    log = LogReader("ada/x.har", SALT, False, segments.append).read(make_log(tmp_path / "x.jsonl", [make_pair()]))
    har, har_segments = read(make_har(tmp_path / "x.har", [make_entry()]))
    differ = ["recorded_by", "row_digest", "payload_bytes", "ttft_s"]
    assert har.requests.drop(differ).equals(log.requests.drop(differ))
    assert har_segments.equals(pl.concat(segments))


def test_nothing_of_the_secrets_is_kept(tmp_path):
    content, segments = read(make_har(tmp_path / "x.har", [make_entry(), make_entry(request={"url": CREDENTIAL})]))
    assert CREDENTIAL in (tmp_path / "x.har").read_text()
    assert CREDENTIAL not in repr(content.requests.rows()) + repr(segments.rows()) + repr(content.skips)


def test_headers_name_session_and_agent(tmp_path):
    names = {"X-Claude-Code-Session-Id": "s1", "x-claude-code-agent-id": "a1"}
    headers = [{"name": name, "value": value} for name, value in names.items()] + [7, {"name": ["x"], "value": 1}]
    row = only_row(tmp_path, make_entry(request={"headers": headers}))
    assert (row["session_id"], row["named_agent_id"]) == ("s1", "a1")


@pytest.mark.parametrize(
    "content",
    [
        {"text": EVENTS},
        encoded(EVENTS.encode()),
        encoded(gzip.compress(EVENTS.encode())),
        encoded(zlib.compress(EVENTS.encode())),
    ],
    ids=["text", "base64", "gzip", "deflate"],
)
def test_a_streamed_answer_is_read_from_its_events(tmp_path, content):
    row = only_row(tmp_path, make_entry(response={"content": content}))
    assert (row["outcome"], row["message_id"], row["stop_reason"]) == ("ok", "msg_7", "tool_use")
    assert (row["input_tokens"], row["output_tokens"]) == (5, 9)


def test_a_request_may_be_encoded_too(tmp_path):
    plain = only_row(tmp_path, make_entry())
    row = only_row(tmp_path, make_entry(request={"postData": encoded(make_body().encode())}))
    assert row["content_id"] == plain["content_id"]


@pytest.mark.parametrize(
    ("response", "outcome", "told"),
    [
        ({"status": 0}, "no_response", []),
        ({"content": {}}, "no_response", [(1, "no_response_body", False)]),
        ({"content": encoded(gzip.compress(EVENTS.encode())[:30])}, "error", []),
        ({"content": encoded(BROTLI)}, "no_response", [(1, "no_response_body", False)]),
        ({"content": encoded(EVENTS.encode() + b"\xe2\x82")}, "ok", []),
        ({"content": {"text": "%%%", "encoding": "base64"}}, "no_response", [(1, "no_response_body", False)]),
        ({"status": 529}, "error", []),
        ({"status": 529, "content": {}}, "error", [(1, "no_response_body", False)]),
        ({"content": {"text": f"data: {json.dumps(START)}"}}, "aborted", []),
        ({"content": 7, "headers": 7, "status": "200"}, "no_response", []),
    ],
)
def test_outcomes(tmp_path, response, outcome, told):
    content = read_entries(tmp_path, make_entry(response=response))
    assert (content.requests["outcome"].to_list(), reasons(content)) == ([outcome], told)


LEFT_OUT = [
    ("7", "broken_entry"),
    ("[1]", "broken_entry"),
    ("{1}", "broken_entry"),
    ("[" * 9999 + "]" * 9999, "broken_entry"),
    ("{}", "no_request"),
    (make_entry(request=None), "no_request"),
    (make_entry(request={"url": "https://api.anthropic.com/v1/messages/count_tokens"}), "other_endpoint"),
    (make_entry(request={"url": None}), "other_endpoint"),
    (make_entry(request={"postData": None}), "no_body"),
    (make_entry(request={"postData": {"text": "text"}}), "body_not_json"),
    (make_entry(request={"postData": {"text": "[]"}}), "body_not_object"),
    (make_entry(request={"postData": {"text": "{}"}}), "no_messages"),
    (make_entry(startedDateTime=None), "bad_timestamp"),
    (make_entry(startedDateTime="yesterday"), "bad_timestamp"),
]


@pytest.mark.parametrize(("entry", "reason"), LEFT_OUT, ids=[f"{i}-{reason}" for i, (_, reason) in enumerate(LEFT_OUT)])
def test_an_entry_that_can_not_be_used_is_left_out_with_its_reason_and_the_others_stay(tmp_path, entry, reason):
    content = read_entries(tmp_path, make_entry(message_id="a"), entry, make_entry(message_id="b"))
    assert content.requests["message_id"].to_list() == ["a", "b"]
    assert reasons(content) == [(2, reason, True)]
    assert content.skips[0].remedy


def test_an_entry_that_stands_there_twice_counts_once(tmp_path):
    content = read_entries(tmp_path, make_entry(), make_entry())
    assert (content.requests["row_id"].to_list(), reasons(content)) == ([1], [(2, "repeated_pair", False)])


def test_a_file_that_is_cut_off_gives_what_is_whole(tmp_path):
    path = make_har(tmp_path / "x.har", [make_entry(message_id="a"), make_entry(message_id="b")])
    path.write_bytes(path.read_bytes()[:-200])
    content = read(path)[0]
    assert (content.requests["message_id"].to_list(), reasons(content)) == (["a"], [(None, "cut_off_file", True)])


def test_files_that_can_not_be_read(tmp_path):
    (tmp_path / "empty.har").touch()
    (tmp_path / "folder.har").mkdir()
    os.mkfifo(tmp_path / "pipe.har")
    found = {name: reasons(read(tmp_path / f"{name}.har")[0]) for name in ("empty", "folder", "pipe", "gone")}
    assert found["empty"] == [(None, "not_a_har", True)]
    assert found["folder"] == found["pipe"] == found["gone"] == [(None, "unreadable_file", True)]


def test_detection(tmp_path):
    har = make_har(tmp_path / "capture.json", [])
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + har.read_bytes())
    (tmp_path / "other.json").write_text('{"logs": {}}')
    names = ("capture.json", "bom.json", "other.json", "any.har", "any.HAR", "gone.json")
    assert [is_har(tmp_path / name) for name in names] == [True, True, False, True, True, False]


edits = st.dictionaries(
    st.sampled_from(["url", "headers", "postData", "status", "content", "text", "encoding"]), json_values, max_size=3
)
odd_entries = st.one_of(
    json_values,
    st.builds(lambda request, response: make_entry(request=request, response=response), edits, edits),
    st.builds(lambda post, answer: make_entry(request={"postData": post}, response={"content": answer}), edits, edits),
    st.builds(make_entry, st.dictionaries(st.sampled_from(["messages", "system", "metadata"]), json_values)),
    st.builds(lambda time, timings: make_entry() | {"time": time, "timings": timings}, json_values, json_values),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(odd_entries, max_size=4))
def test_whatever_a_file_holds_every_entry_is_used_or_told_of(tmp_path, odd):
    entries = [
        json.dumps(entry) if isinstance(entry, str) else entry for entry in odd
    ]  # strings are written as they are
    content, segments = read(make_har(tmp_path / "x.har", [make_entry(message_id="good"), *entries]))
    told = {skip.row for skip in content.skips if skip.is_left_out or skip.reason == "repeated_pair"}
    assert None not in told
    assert content.requests.height + len(told) == 1 + len(odd)
    assert set(content.requests["row_id"]).isdisjoint(told)
    used = content.requests["message_segments"].explode().drop_nulls()
    assert set(used) <= set(segments["segment_index"])
