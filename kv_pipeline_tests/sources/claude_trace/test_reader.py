from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kv_pipeline.sources import lines
from kv_pipeline.sources.anthropic_messages.rows import Recording
from kv_pipeline.sources.claude_code_proxy.reader import DatabaseReader
from kv_pipeline.sources.claude_trace.reader import LogReader
from kv_pipeline_tests.sources.factories import (
    CREDENTIAL,
    MESSAGE,
    SALT,
    make_database,
    make_log,
    make_pair,
    make_row,
    read_checked,
    reasons,
)
from kv_pipeline_tests.strategies import json_values

START = {"type": "message_start", "message": {"id": "msg_7", "usage": {"input_tokens": 5}}}
DELTA = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}}


def read(path: Path) -> tuple[Recording, pl.DataFrame]:
    """What a log holds, and its segments, both checked against their models."""
    return read_checked(LogReader, "ada/log.jsonl", path)


def read_lines(tmp_path: Path, *pairs: Any) -> Recording:
    return read(make_log(tmp_path / "log.jsonl", pairs))[0]


def only_row(tmp_path: Path, pair: dict[str, Any]) -> dict[str, Any]:
    content = read_lines(tmp_path, pair)
    assert content.skips == []
    return content.requests.row(0, named=True)


def test_a_pair_is_a_request(tmp_path):
    row = only_row(tmp_path, make_pair())
    assert (row["request_id"], row["row_id"], row["outcome"], row["message_id"]) == ("req_msg_1", 1, "ok", "msg_1")
    assert row["requested_at_utc"] == datetime(2025, 5, 29, 21, 38, 24, 250_000, UTC)
    assert row["completed_at_utc"] == datetime(2025, 5, 29, 21, 38, 25, 500_000, UTC)
    assert (row["api_time_s"], row["ttft_s"], row["endpoint"]) == (1.25, None, "/v1/messages")
    assert (row["recorded_by"], row["session_id"]) == ("claude_trace", None)


def test_a_log_says_what_a_database_of_the_same_traffic_says(tmp_path):
    pair = make_pair()
    body, answer = (json.dumps(pair[half]["body"]) for half in ("request", "response"))
    response = f'{{"statusCode":200,"responseTime":1250,"body":{answer},"completedAt":"2025-05-29T21:38:25.5Z"}}'
    row = make_row(id="req_msg_1", timestamp="2025-05-29T21:38:24.25Z", body=body, response=response)
    segments: list[pl.DataFrame] = []
    database = DatabaseReader("ada/log.jsonl", SALT, False, segments.append).read(make_database(tmp_path, [row]))
    log, log_segments = read(make_log(tmp_path / "log.jsonl", [pair]))
    differ = ["recorded_by", "row_digest", "routed_model", "payload_bytes"]
    assert log.requests.drop(differ).equals(database.requests.drop(differ))
    assert log_segments.equals(pl.concat(segments))


def test_nothing_of_the_headers_is_kept(tmp_path):
    content, segments = read(make_log(tmp_path / "log.jsonl", [make_pair(), make_pair({"n": 1}, request={"body": 1})]))
    assert CREDENTIAL not in repr(content.requests.rows()) + repr(segments.rows()) + repr(content.skips)


def test_a_streamed_answer_is_read_from_its_raw_events(tmp_path):
    events = [START, {"type": "content_block_start", "content_block": {"type": "tool_use"}}, DELTA]
    raw = "".join(f"event: {event['type']}\r\ndata: {json.dumps(event)}\r\n\r\n" for event in events)
    row = only_row(tmp_path, make_pair(response={"body": None, "body_raw": raw}))
    assert (row["outcome"], row["message_id"], row["stop_reason"]) == ("ok", "msg_7", "tool_use")
    assert (row["input_tokens"], row["output_tokens"], row["output_types"]) == (5, 9, ["tool_use"])


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (None, "no_response"),
        ({"body": None, "body_raw": f"data: {json.dumps(START)}\n\n"}, "aborted"),
        ({"body": None, "body_raw": "upstream connect error"}, "error"),
        ({"body": None, "body_raw": '{"id": "msg_1"}'}, "ok"),
        ({"body": '{"id": "msg_1"}'}, "ok"),
        ({"body": '{"id": "ms'}, "error"),
        ({"body": None}, "error"),
        ({"status_code": 529}, "error"),
        ({"status_code": "200", "headers": [1], "timestamp": "soon"}, "ok"),
    ],
)
def test_outcomes(tmp_path, response, outcome):
    assert only_row(tmp_path, make_pair(response=response))["outcome"] == outcome


@pytest.mark.parametrize(
    ("completed", "api_time_s"),
    [(1_748_554_704.25, 0.0), (1_748_554_704, None), (None, None), ("2025-05-29T21:38:25Z", 0.75)],
)
def test_api_time_lies_between_the_timestamps(tmp_path, completed, api_time_s):
    assert only_row(tmp_path, make_pair(response={"timestamp": completed}))["api_time_s"] == api_time_s


def test_time_to_the_first_token_is_what_the_headers_say(tmp_path):
    headers = {"Server-Timing": "x-originResponse;dur=1250.5"}
    row = only_row(tmp_path, make_pair(response={"headers": headers}))
    assert (row["ttft_s"], row["request_id"]) == (1.2505, "row-1")


@pytest.mark.parametrize(
    "url",
    [None, "https://gateway.example/anthropic/v1/messages", "/v1/messages/", "https://x/v1/messages?key=secret#x"],
)
def test_urls_of_messages(tmp_path, url):
    assert only_row(tmp_path, make_pair(request={"url": url}))["endpoint"] == "/v1/messages"


LEFT_OUT = [
    ("not JSON", "broken_line"),
    ("[1]", "broken_line"),
    (b"\xff\xfe\n", "broken_line"),
    (b"\x00" * 50 + b"\n", "broken_line"),
    ("[" * 100_000, "broken_line"),
    ("{}", "no_request"),
    (make_pair(request=None), "no_request"),
    (make_pair(request=[1]), "no_request"),
    (make_pair(request={"url": "https://api.anthropic.com/v1/messages/count_tokens"}), "other_endpoint"),
    (make_pair(request={"url": "https://api.anthropic.com/api/hello?/v1/messages"}), "other_endpoint"),
    (make_pair(request={"url": 7}), "other_endpoint"),
    (make_pair(request={"body": None}), "no_body"),
    (make_pair(request={"body": "text"}), "body_not_object"),
    (make_pair(request={"body": {"model": "m"}}), "no_messages"),
    (make_pair(request={"timestamp": None}), "bad_timestamp"),
    (make_pair(request={"timestamp": True}), "bad_timestamp"),
    (make_pair(request={"timestamp": 1e300}), "bad_timestamp"),
    (make_pair(request={"timestamp": float("nan")}), "bad_timestamp"),
    (make_pair(request={"timestamp": "yesterday"}), "bad_timestamp"),
    (make_pair(request={"timestamp": [1]}), "bad_timestamp"),
]


@pytest.mark.parametrize(("line", "reason"), LEFT_OUT, ids=[f"{i}-{reason}" for i, (_, reason) in enumerate(LEFT_OUT)])
def test_a_line_that_can_not_be_used_is_left_out_with_its_reason_and_the_others_stay(tmp_path, line, reason):
    content = read_lines(tmp_path, make_pair(message_id="a"), line, make_pair(message_id="b"))
    assert content.requests["message_id"].to_list() == ["a", "b"]
    assert reasons(content) == [(2, reason, True)]
    assert content.skips[0].source == "ada/log.jsonl"
    assert content.skips[0].remedy


def test_a_request_whose_response_is_broken_is_kept_as_unanswered(tmp_path):
    content = read_lines(tmp_path, make_pair(response="cut off"))
    assert content.requests["outcome"].to_list() == ["no_response"]
    assert reasons(content) == [(1, "response_not_json", False)]


def test_a_half_written_last_line_waits_for_its_end(tmp_path):
    path = make_log(tmp_path / "log.jsonl", [make_pair(message_id="a"), make_pair(message_id="b")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert reasons(read(path)[0]) == [(2, "unfinished_line", True)]
    path.write_bytes(whole[:-1])
    assert read(path)[0].requests["message_id"].to_list() == ["a", "b"]


def test_a_pair_that_is_logged_twice_counts_once(tmp_path):
    pair, again = make_pair(), make_pair() | {"logged_at": "2025-05-29T23:59:59"}
    content = read_lines(tmp_path, pair, make_pair(message_id="b"), again, pair)
    assert content.requests["row_id"].to_list() == [1, 2]
    assert reasons(content) == [(3, "repeated_pair", False), (4, "repeated_pair", False)]
    assert "line 1" in content.skips[0].found


def test_empty_lines_and_a_byte_order_mark_are_nothing(tmp_path):
    line = json.dumps(make_pair()).encode()
    content = read_lines(tmp_path, b"\xef\xbb\xbf" + line + b"\n\n  \r\n", b"")
    assert (content.requests.height, content.skips) == (1, [])


def test_lines_that_are_too_long_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 5000)
    long = make_pair({"messages": [MESSAGE | {"content": "x" * 40_000}]})
    content = read_lines(tmp_path, long, make_pair())
    assert (content.requests["row_id"].to_list(), reasons(content)) == ([2], [(1, "long_line", True)])


def test_files_that_can_not_be_read(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    found = {name: reasons(read(tmp_path / f"{name}.jsonl")[0]) for name in ("empty", "folder", "pipe", "gone")}
    assert found["empty"] == [(None, "empty_file", True)]
    assert found["folder"] == found["pipe"] == found["gone"] == [(None, "unreadable_file", True)]


def test_a_body_that_repeats_an_earlier_one_shares_its_segments(tmp_path):
    messages = [{"role": "user", "content": f"{n} " + "x" * 9_000} for n in range(4)]
    pairs = [make_pair({"messages": messages[:n]}, message_id=f"m{n}") for n in (1, 3, 4)]
    content, segments = read(make_log(tmp_path / "log.jsonl", pairs))
    assert content.requests["message_segments"].to_list() == [[0], [0, 1, 2], [0, 1, 2, 3]]
    assert segments.height == 4


edits = st.dictionaries(
    st.sampled_from(["timestamp", "url", "method", "headers", "body", "body_raw", "status_code"]),
    json_values,
    max_size=3,
)
odd_pairs = st.one_of(
    json_values.map(json.dumps),
    st.builds(lambda request, response: json.dumps(make_pair(request=request, response=response)), edits, edits),
    st.builds(lambda body: json.dumps(make_pair(body)), st.dictionaries(
        st.sampled_from(["messages", "tools", "system", "metadata", "model", "tool_choice", "effort"]), json_values)),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(odd_pairs.map(str.encode), st.binary(max_size=30)), max_size=4), st.data())
def test_whatever_a_log_holds_every_line_is_used_or_told_of(tmp_path, odd, data):
    whole = b"\n".join([json.dumps(make_pair(message_id="good")).encode(), *odd]) + b"\n"
    cut = data.draw(st.integers(len(whole) // 2, len(whole)))
    path = tmp_path / "log.jsonl"
    path.write_bytes(whole[:cut])
    content, segments = read(path)
    n_lines = sum(bool(line.strip()) for line in whole[:cut].split(b"\n"))
    told = {skip.row for skip in content.skips if skip.is_left_out or skip.reason == "repeated_pair"}
    assert content.requests.height + len(told) == n_lines
    assert set(content.requests["row_id"]).isdisjoint(told)
    used = content.requests["message_segments"].explode().drop_nulls()
    assert segments.is_empty() or set(used) <= set(segments["segment_index"])
