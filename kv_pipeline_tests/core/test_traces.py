from __future__ import annotations

import polars as pl
import pytest

from kv_pipeline.core.traces import trace_rows, with_resets
from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.store import check
from kv_pipeline_tests.factories import at


def request(index, at_s, agent="main", **columns):
    return {
        "conversation_id": "ada/s", "request_index": index, "agent_id": agent, "agent_request_index": index,
        "turn_index": 0, "requested_at_utc": at(at_s), "is_streaming": True, "model": "m", "tools_tokens": 1,
        "exactness": "recorded",
        "system_tokens": 2, "messages_tokens": 3, "output_tokens": 4, "output_types": ["text"],
        "stop_reason": "end_turn", "api_time_s": 2.0, "ttft_s": 0.5, "completed_at_utc": at(at_s + 2),
        "is_after_compaction": False, "estimated_tokens": 0, "n_blocks": 10, "agent_shared_blocks": 10,
        "message_types": None, **columns,
    }  # fmt: skip


SMALL = ("request_index", "agent_request_index", "turn_index", "tools_tokens", "system_tokens", "messages_tokens",
         "estimated_tokens", "n_blocks", "agent_shared_blocks")  # fmt: skip
TYPES = {"message_types": pl.List(pl.String), "output_tokens": pl.Int64, "ttft_s": pl.Float64, "stop_reason": pl.String}


def traced(*requests):
    overrides = dict.fromkeys(SMALL, pl.UInt32) | TYPES
    frame = with_resets(pl.DataFrame(requests, schema_overrides=overrides, infer_schema_length=None))
    return check(TRACES, trace_rows(frame))


def test_times_and_tokens():
    frame = traced(request(0, 10), request(1, 12.25, api_time_s=None))
    assert frame["t_s"].to_list() == [0.0, 2.25]
    assert frame["input_tokens"].to_list() == [6, 6]
    assert frame["api_time_s"].to_list() == [2.0, None]


def test_what_an_answer_does_not_say():
    (row,) = traced(request(0, 0, output_tokens=None, stop_reason=None, ttft_s=None)).to_dicts()
    assert (row["output_tokens"], row["stop_reason"], row["ttft_s"]) == (0, "", None)


@pytest.mark.parametrize(("is_streaming", "kind", "ttft"), [(True, "s", 0.5), (False, "n", None)])
def test_only_streamed_requests_have_a_time_to_first_token(is_streaming, kind, ttft):
    (row,) = traced(request(0, 0, is_streaming=is_streaming)).to_dicts()
    assert (row["type"], row["ttft_s"]) == (kind, ttft)


@pytest.mark.parametrize(
    ("previous", "seconds"),
    [
        pytest.param({"completed_at_utc": at(3)}, 7.0, id="from completion"),
        pytest.param({"completed_at_utc": None, "api_time_s": 4.0}, 6.0, id="from duration"),
        pytest.param({"completed_at_utc": None, "api_time_s": None}, 10.0, id="from its start"),
        pytest.param({"completed_at_utc": at(30)}, 0.0, id="never below 0"),
    ],
)
def test_think_time(previous, seconds):
    assert traced(request(0, 0, **previous), request(1, 10))["think_time_s"].to_list() == [0.0, seconds]


def test_think_time_and_input_types_belong_to_the_agent():
    frame = traced(
        request(0, 0, stop_reason="tool_use"),
        request(1, 5, "a", agent_request_index=0),
        request(2, 10, agent_request_index=1),
        request(3, 20, "a", agent_request_index=1),
    )
    assert frame["think_time_s"].to_list() == [0.0, 0.0, 8.0, 13.0]
    assert frame["input_types"].to_list() == [["text"], ["text"], ["tool_result"], ["text"]]


@pytest.mark.parametrize(
    ("stop", "types"),
    [("tool_use", ["tool_result"]), ("end_turn", ["text"]), ("max_tokens", ["text"]), (None, ["text"])],
)
def test_input_types_follow_the_stop_before(stop, types):
    assert traced(request(0, 0, stop_reason=stop), request(1, 9))["input_types"].to_list() == [["text"], types]


@pytest.mark.parametrize(
    ("kept", "types"), [(4, ["image", "text"]), (5, ["tool_result"])], ids=["under half kept", "half kept"]
)
def test_a_major_reset_tells_the_types_present(kept, types):
    frame = traced(
        request(0, 0, stop_reason="tool_use"),
        request(1, 9, agent_shared_blocks=kept, message_types=["image", "text"]),
    )
    assert frame["input_types"].to_list()[1] == types


def test_the_first_request_is_no_reset():
    frame = with_resets(pl.DataFrame([request(0, 0, agent_shared_blocks=0), request(1, 1, agent_shared_blocks=0)]))
    assert frame["is_reset"].to_list() == [False, True]


def test_a_reset_without_messages_is_text():
    frame = traced(request(0, 0), request(1, 9, agent_shared_blocks=0, message_types=None))
    assert frame["input_types"].to_list()[1] == ["text"]
