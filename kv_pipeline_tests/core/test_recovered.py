from __future__ import annotations

from typing import Any

import polars as pl

from kv_pipeline.core.recovered import Recovered, recover
from kv_pipeline.schemas.transcripts import TRANSCRIPT_AGENTS, TRANSCRIPT_ANSWERS
from kv_pipeline.store import check
from kv_pipeline_tests.factories import at

SCHEMA = {
    "session_id": pl.String, "database_id": pl.String, "row_id": pl.Int64, "requested_at_utc": pl.Datetime("us", "UTC"),
    "model": pl.String, "message_id": pl.String, "tools_id": pl.UInt64, "system_id": pl.UInt64,
    "message_ids": pl.List(pl.UInt64),
}  # fmt: skip


def request(at_s: float, messages: str, **changes: Any) -> dict[str, Any]:
    """An answered request with tools; messages are letters, and the answer is named after them."""
    row = {"session_id": "s", "database_id": "ada/x.jsonl", "row_id": int(at_s), "requested_at_utc": at(at_s),
           "model": "m", "message_id": messages, "tools_id": 2**63 + 1, "system_id": 2,
           "message_ids": [ord(letter) for letter in messages]}  # fmt: skip
    return row | changes


def recovered(*rows: dict[str, Any]) -> Recovered:
    found = recover(pl.DataFrame(rows, schema=SCHEMA))
    check(TRANSCRIPT_ANSWERS, found.answers)
    check(TRANSCRIPT_AGENTS, found.agents)
    return found


def agent_of(found: Recovered) -> dict[str, str]:
    """Message to agent."""
    return dict(found.answers.select("message_id", "agent_id").rows())


def test_nothing():
    found = recovered()
    assert (found.answers.height, found.agents.height) == (0, 0)


def test_a_loop_is_a_main_thread_and_probes_are_nobody():
    found = recovered(
        request(0, "q", tools_id=None, model="small"),
        request(1, "a"),
        request(2, "t", tools_id=None, system_id=9),
        request(3, "abc"),
    )
    assert agent_of(found) == {"a": "main", "abc": "main"}
    assert found.agents.select("session_id", "agent_id", "parent_agent_id", "link", "depth").rows() == [
        ("s", "main", None, "main", 0)
    ]
    assert found.answers["answered_at"][0] == "2026-03-02T08:00:01.000000Z"
    assert found.answers["line"].to_list() == [1, 2]


def test_a_single_request_with_a_history_is_somebody():
    assert agent_of(recovered(request(0, "abc", tools_id=None))) == {"abc": "main"}


def test_agents_are_numbered_as_they_begin_and_stand_below_the_longest_lane():
    found = recovered(
        request(1, "a"), request(2, "y", tools_id=7), request(3, "x", model="n"), request(4, "abc"),
        request(5, "xyz", model="n"), request(6, "abcde"),
    )  # fmt: skip
    assert agent_of(found) == {"a": "main", "abc": "main", "abcde": "main", "y": "agent-1", "x": "agent-2",
                               "xyz": "agent-2"}  # fmt: skip
    assert found.agents.select("agent_id", "parent_agent_id", "link", "depth").rows()[1:] == [
        ("agent-1", "main", "none", 1),
        ("agent-2", "main", "none", 1),
    ]


def test_what_lies_wholly_before_or_after_the_longest_lane_with_its_tools_is_more_of_it():
    found = recovered(
        request(1, "a"), request(2, "abc"),
        request(10, "k", system_id=3), request(11, "klm"), request(12, "klmno"), request(13, "klmnopq"),
        request(12.5, "v"), request(20, "x"), request(21, "xyz"),
    )  # fmt: skip
    agents = agent_of(found)
    assert {agents[message] for message in ("a", "abc", "k", "klmno", "x", "xyz")} == {"main"}
    assert agents["v"] == "agent-1"


def test_without_tools_or_with_another_model_it_is_not():
    found = recovered(
        request(1, "a"), request(2, "abc"), request(3, "abcde"), request(4, "x", model="n"), request(5, "y", tools_id=7)
    )
    assert agent_of(found) | {"x": "agent-1", "y": "agent-2"} == agent_of(found)
    chat = recovered(*(request(n, m, tools_id=None) for n, m in enumerate(("a", "abc", "x", "xyz", "xyzab"))))
    assert agent_of(chat) == {"a": "agent-1", "abc": "agent-1", "x": "main", "xyz": "main", "xyzab": "main"}


def test_sessions_are_apart_and_may_span_recordings():
    found = recovered(
        request(1, "a"), request(2, "abc", database_id="ada/y.jsonl"), request(3, "abcde", session_id="t"),
        request(4, "x"),
    )  # fmt: skip
    rows = found.answers.select("message_id", "session_id", "agent_id").rows()
    assert rows == [("a", "s", "main"), ("abc", "s", "main"), ("abcde", "t", "main"), ("x", "s", "main")]


def test_the_order_of_rows_does_not_matter():
    rows = [request(n, "abcdefghij"[: 1 + 2 * n]) for n in range(5)] + [request(2.5, "xy"), request(3.5, "xyzz")]
    straight, reverse = recovered(*rows), recovered(*reversed(rows))
    assert straight.answers.equals(reverse.answers)
    assert straight.agents.equals(reverse.agents)


def test_the_main_thread_lasts_longest_and_has_tools():
    found = recovered(
        request(1, "a"), *(request(2 + n, "xyzuvwrst"[: 1 + 2 * n], model="n") for n in range(5)), request(9, "abc"),
        request(0, "p", tools_id=None), request(99, "pqr", tools_id=None),
    )  # fmt: skip
    agents = agent_of(found)
    assert (agents["a"], agents["abc"], agents["x"], agents["pqr"]) == ("main", "main", "agent-2", "agent-1")


def test_requests_of_one_second_are_in_the_order_of_their_length():
    """Older clients rewrite the first message right after the first request."""
    found = recovered(request(1, "a"), request(1, "xbc", row_id=2), request(2, "xbcde"))
    assert set(agent_of(found).values()) == {"main"}
