from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kv_pipeline.sources.anthropic_messages.rows import Recording
from kv_pipeline.sources.claude_code_proxy.reader import DatabaseReader
from kv_pipeline_tests.sources.factories import (
    LOOSE_SCHEMA,
    MESSAGE,
    make_body,
    make_database,
    make_response,
    make_row,
    make_rows,
    read_checked,
)


def read(path: Path) -> tuple[Recording, pl.DataFrame]:
    """What a database holds, and its segments, both checked against their models."""
    return read_checked(DatabaseReader, "ada/requests", path)


def read_rows_of(tmp_path: Path, *rows: dict[str, Any]) -> tuple[Recording, pl.DataFrame]:
    (tmp_path / "requests.db").unlink(missing_ok=True)
    return read(make_database(tmp_path, rows, schema=LOOSE_SCHEMA))


def left_out(content: Recording) -> list[tuple[int | None, str]]:
    return [(skip.row, skip.reason) for skip in content.skips if skip.is_left_out]


def noticed(content: Recording) -> list[tuple[int | None, str]]:
    return [(skip.row, skip.reason) for skip in content.skips if not skip.is_left_out]


def test_a_row_is_a_request(tmp_path):
    content, segments = read_rows_of(tmp_path, make_row())
    row = content.requests.row(0, named=True)
    assert content.skips == []
    assert (row["request_id"], row["row_id"], row["outcome"], row["message_id"]) == ("r1", 1, "ok", "msg_1")
    assert row["requested_at_utc"] == datetime(2025, 1, 1, tzinfo=UTC)
    assert segments["text"].to_list() == [json.dumps(MESSAGE, separators=(",", ":"))]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body": "upstream error"}, "body_not_json"),
        ({"body": make_body()[:-5]}, "body_not_json"),
        ({"body": json.dumps(make_body())}, "body_not_object"),
        ({"body": 17}, "body_not_object"),
        ({"body": b"\xff\xfe"}, "body_not_utf8"),
        ({"body": b'{"messages":["\xff"]}'}, "body_not_utf8"),
        ({"body": '{"messages":[' + "[" * 5000 + "]" * 5000 + "]}"}, "body_too_deep"),
        ({"body": '{"messages":[' + "9" * 5000 + "]}"}, "body_not_json"),
        ({"timestamp": "yesterday"}, "bad_timestamp"),
        ({"timestamp": None}, "bad_timestamp"),
        ({"timestamp": 1735732800}, "bad_timestamp"),
        ({"timestamp": b"\xff"}, "bad_timestamp"),
        ({"endpoint": "/v1/messages/count_tokens"}, "other_endpoint"),
    ],
)  # fmt: skip
def test_a_row_that_can_not_be_used_is_left_out_with_its_reason_and_the_others_stay(tmp_path, changes, reason):
    content, _ = read_rows_of(tmp_path, make_row(), make_row(id="bad", **changes), make_row(id="r3"))
    assert content.requests["request_id"].to_list() == ["r1", "r3"]
    assert left_out(content) == [(2, reason)]
    assert all(
        (skip.source, bool(skip.found), bool(skip.remedy)) == ("ada/requests", True, True) for skip in content.skips
    )


@pytest.mark.parametrize(
    "response",
    ["", "upstream timed out", make_response()[:30], json.dumps(make_response()), "[]", b"\xff", 3, 1.5],
    ids=["empty", "error text", "half-written", "a JSON string", "a list", "bytes", "integer", "float"],
)
def test_a_request_with_an_unreadable_response_stays_as_unanswered(tmp_path, response):
    content, _ = read_rows_of(tmp_path, make_row(response=response))
    assert content.requests["outcome"].to_list() == ["no_response"]
    assert noticed(content) == [(1, "response_not_json")]
    assert left_out(content) == []


def test_a_request_that_was_not_answered_needs_no_notice(tmp_path):
    content, _ = read_rows_of(tmp_path, make_row(response=None))
    assert (content.requests["outcome"].to_list(), content.skips) == (["no_response"], [])


def test_no_rows_are_noticed(tmp_path):
    content, _ = read_rows_of(tmp_path)
    assert content.requests.is_empty()
    assert noticed(content) == [(None, "no_rows")]


def test_a_file_that_is_no_database_is_one_skip(tmp_path):
    (tmp_path / "requests.db").write_text("hello")
    content, _ = read(tmp_path / "requests.db")
    assert content.requests.is_empty()
    assert left_out(content) == [(None, "not_a_database")]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "a system message among the others is real"},
        {"role": "oracle", "content": [{"type": "prophecy", "body": [1, {}]}]},
        {"role": 5, "content": {"type": "text"}},
        {"content": [{"type": ["text"]}, {"type": {}}, "text", 3, None]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": 1, "data": "!"}}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"ttl": [1]}}]},
        "hello", None, 3.5, [], [[[]]], True,
    ],
    ids=lambda message: json.dumps(message)[:40],
)  # fmt: skip
def test_messages_of_any_shape_are_segments(tmp_path, message):
    content, segments = read_rows_of(tmp_path, make_row(body=make_body(messages=[MESSAGE, message])))
    assert content.skips == []
    assert json.loads(segments["text"][1]) is not ...
    assert content.requests["message_segments"].to_list() == [[0, 1]]


@pytest.mark.parametrize("value", ["text", {}, [], [[]], 0, False, [None, 1, "x", {"cache_control": {}}]], ids=repr)
@pytest.mark.parametrize("key", ["tools", "system"])
def test_tools_and_system_of_any_shape_are_segments(tmp_path, key, value):
    content, segments = read_rows_of(tmp_path, make_row(body=make_body(**{key: value})))
    assert content.skips == []
    assert segments.filter(kind=key).height == 1


def test_no_messages_at_all_is_a_request(tmp_path):
    content, segments = read_rows_of(tmp_path, make_row(body=make_body(messages=[])))
    assert content.requests["message_segments"].to_list() == [[]]
    assert segments.is_empty()


def test_half_surrogate_pairs_are_kept_as_escapes_in_text_and_replaced_in_names(tmp_path):
    message = r'{"role":"\ud800","content":[{"type":"\udfff","text":"\ud83d"}]}'
    content, segments = read_rows_of(tmp_path, make_row(body='{"model":"\\ud800","messages":[' + message + "]}"))
    assert content.requests["model"].to_list() == ["?"]
    assert segments.select("role", "content_types").rows() == [("other", ["other"])]
    assert segments["text"][0] == message


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["2025-01-01T00:00:05Z", "2025-01-01T00:00:05Z"], []),
        (["2025-01-01T02:00:00+02:00", "2024-12-31T19:00:01-05:00"], []),
        (["2025-01-01T00:01:00Z", "2025-01-01T00:00:00Z", "2025-01-01T00:00:30Z"], [(2, "clock_set_back")]),
    ],
    ids=["equal", "offsets", "backwards"],
)
def test_times(tmp_path, times, expected):
    content, _ = read_rows_of(tmp_path, *[make_row(id=f"r{n}", timestamp=time) for n, time in enumerate(times)])
    assert content.requests.height == len(times)
    assert noticed(content) == expected
    assert left_out(content) == []


@pytest.mark.parametrize("request_id", [None, "", 5, b"\xff\xfe"], ids=["null", "empty", "integer", "bytes"])
def test_odd_ids(tmp_path, request_id):
    content, _ = read_rows_of(tmp_path, make_row(id=request_id))
    assert content.requests["request_id"].to_list() == [
        {None: "row-1", "": "row-1", 5: "5"}.get(request_id, "\ufffd\ufffd")
    ]


def test_blobs_read_like_text(tmp_path):
    text = make_row()
    blob = {
        name: value.encode() if name in {"body", "response", "timestamp"} else value for name, value in text.items()
    }
    first, _ = read_rows_of(tmp_path, text)
    second, _ = read_rows_of(tmp_path, blob)
    assert second.requests.equals(first.requests)


def test_reading_twice_gives_the_same(tmp_path):
    path = make_database(tmp_path, make_rows(20))
    (first, segments), (second, again) = read(path), read(path)
    assert first.requests.equals(second.requests)
    assert segments.equals(again)


# Anything in any cell ------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["role", "content", "type", "text", "cache_control", "ttl", "source", "data", "media_type", "id"]
)
BLOCKS = st.dictionaries(KEYS, JSON | st.sampled_from(["base64", "1h", "image/png", "image"]), max_size=5)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": JSON,
        "messages": st.lists(st.dictionaries(KEYS, st.lists(BLOCKS, max_size=2) | JSON, max_size=3) | JSON, max_size=3)
        | JSON,
        "tools": st.lists(BLOCKS, max_size=2) | JSON,
        "system": st.lists(BLOCKS, max_size=2) | st.just("x-anthropic-billing-header: cch=\ud800;") | JSON,
        "stream": JSON,
        "cache_control": BLOCKS | JSON,
    },
)
USAGE = st.dictionaries(
    st.sampled_from(["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_creation"]),
    JSON | st.dictionaries(st.just("ephemeral_1h_input_tokens"), JSON),
)
EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["message_start", "content_block_start", "message_delta", "message_stop", "x"]) | JSON},
    optional={
        "message": st.fixed_dictionaries({}, optional={"id": JSON, "usage": USAGE | JSON}) | JSON,
        "content_block": BLOCKS | JSON,
        "delta": st.fixed_dictionaries({}, optional={"stop_reason": JSON}) | JSON,
        "usage": USAGE | JSON,
    },
)
RESPONSES = st.fixed_dictionaries(
    {},
    optional={
        "statusCode": JSON,
        "headers": st.dictionaries(st.sampled_from(["Server-Timing", "x-envoy-upstream-service-time"]),
                                   st.lists(st.text("dur=0123456789.", max_size=9)) | JSON) | JSON,
        "body": st.fixed_dictionaries(
            {}, optional={"id": JSON, "content": st.lists(BLOCKS) | JSON, "usage": USAGE | JSON, "stop_reason": JSON}
        ) | JSON,
        "streamingChunks": st.lists(EVENTS.map(lambda event: "data: " + json.dumps(event)) | JSON, max_size=4) | JSON,
        "responseTime": JSON,
        "completedAt": st.sampled_from(["2025-01-01T00:00:00+05:00", "0001-01-01T00:00:00+05:00"]) | JSON,
    },
)  # fmt: skip


def cut(value: Any) -> st.SearchStrategy[Any]:
    text = json.dumps(value)
    return st.integers(0, len(text)).map(lambda end: text[:end]) | st.just(text)


CELLS = (
    st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.integers(-(2**63), 2**63 - 1)
)
CELLS = CELLS | st.floats(allow_nan=False) | st.none()
ROWS = st.fixed_dictionaries(
    {
        "id": CELLS,
        "timestamp": st.sampled_from(["2025-01-01T00:00:00Z", "2024-01-01T00:00:00-08:00", "0001-01-01"]) | CELLS,
        "endpoint": st.sampled_from(["/v1/messages", "/v1/messages?beta=true"]) | CELLS,
        "body": BODIES.flatmap(cut) | CELLS,
        "response": RESPONSES.flatmap(cut) | CELLS,
        "model": CELLS,
        "routed_model": CELLS,
    }
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=st.lists(ROWS, max_size=4))
def test_whatever_the_cells_hold_every_row_is_a_request_or_left_out(tmp_path, rows):
    path = tmp_path / "requests.db"
    path.unlink(missing_ok=True)
    content, segments = read(make_database(path, rows, schema=LOOSE_SCHEMA))
    lost = [skip.row for skip in content.skips if skip.is_left_out]
    assert sorted([*content.requests["row_id"], *lost]) == list(range(1, len(rows) + 1))
    used = {index for indexes in content.requests["message_segments"].to_list() for index in indexes}
    assert used <= set(segments["segment_index"] if segments.height else [])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_database_with_any_bytes_overwritten_never_raises(tmp_path, data):
    path = tmp_path / "requests.db"
    path.unlink(missing_ok=True)
    content = bytearray(make_database(path, make_rows(8, body_bytes=1500)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        damage = data.draw(st.binary(min_size=1, max_size=60))
        content[start : start + len(damage)] = damage
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    before = path.read_bytes()
    found, _ = read(path)
    assert found.requests.height <= 8 or found.requests["row_id"].is_unique().all()
    assert path.read_bytes() == before


CACHE_COLUMNS = ["tool_choice_id", "thinking_id", "speed_id", "context_management_id", "cache_miss_reason",
                 "cache_missed_input_tokens", "has_applied_edits"]  # fmt: skip


def test_options_and_what_the_api_says_of_the_cache_are_columns_and_part_of_the_digest(tmp_path):
    miss = {"cache_miss_reason": {"type": "system_changed", "cache_missed_input_tokens": 70}}
    answers = [{"diagnostics": miss}, {"context_management": {"applied_edits": [{}]}}]
    changes = [{}, {"tool_choice": "x"}, {"thinking": "x"}, {"effort": "x"}, {"speed": "x"}, {"context_management": 0}]
    rows = [make_row(body=make_body(**change)) for change in changes]
    rows += [make_row(response=make_response(body={"id": "msg_1", **answer})) for answer in answers]
    found = read_rows_of(tmp_path, *rows)[0].requests
    assert found["row_digest"].n_unique() == len(rows)
    assert found.row(0, named=True) | dict.fromkeys(CACHE_COLUMNS) | {"has_applied_edits": False} == found.row(
        0, named=True
    )
    ids = found.select(CACHE_COLUMNS[:4])
    assert [[value is not None for value in row] for row in ids.rows()[1:6]] == [
        [True, False, False, False],
        [False, True, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]
    assert ids.unpivot()["value"].drop_nulls().n_unique() == 5  # the same value means another thing elsewhere
    assert found.select(CACHE_COLUMNS[4:]).rows()[6:] == [("system_changed", 70, False), (None, None, True)]


def test_options_of_a_body_that_repeats_an_earlier_one_are_its_own(tmp_path):
    messages = [{"role": "user", "content": f"{n} " + "x" * 20_000} for n in range(3)]
    row = make_row(body=make_body(messages=messages, tool_choice={"type": "auto"}))
    again = make_row(id="r2", body=make_body(messages=[*messages, MESSAGE], tool_choice={"type": "any"}))
    found = read_rows_of(tmp_path, row, again)[0].requests["tool_choice_id"]
    assert found.null_count() == 0
    assert found.n_unique() == 2
