from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kv_pipeline.core.content_facts import MESSAGE_FACTS
from kv_pipeline.core.recovered import Recovered, RecoveryOptions, recover
from kv_pipeline.schemas.transcripts import TRANSCRIPT_AGENTS, TRANSCRIPT_ANSWERS, TRANSCRIPT_COMPACTIONS
from kv_pipeline.store import check
from kv_pipeline_tests.factories import at

SCHEMA = {
    "session_id": pl.String, "named_agent": pl.String, "database_id": pl.String, "row_id": pl.Int64,
    "requested_at_utc": pl.Datetime("us", "UTC"), "model": pl.String, "message_id": pl.String, "is_indexed": pl.Boolean,
    "tools_id": pl.UInt64, "system_id": pl.UInt64, "is_subagent": pl.Boolean, "prefix_tokens": pl.Int64,
    "messages": pl.List(pl.UInt32),
}  # fmt: skip
CALLS = {"C": "c", "D": "d"}
"""Answers that call a sub-agent, with the prompt they give it."""
NO_SESSION = {"session_id": None}


def request(at_s: float, messages: str, **changes: Any) -> dict[str, Any]:
    """An answered request with tools; messages are letters, capitals answers, and the answer is named after them."""
    row = {"session_id": "s", "named_agent": None, "database_id": "ada/x.jsonl", "row_id": int(at_s),
           "requested_at_utc": at(at_s), "model": "m", "message_id": messages, "is_indexed": False,
           "tools_id": 2**63 + 1, "system_id": 2, "is_subagent": False, "prefix_tokens": 9000,
           "messages": [ord(letter) for letter in messages]}  # fmt: skip
    return row | changes


def facts() -> pl.DataFrame:
    """`w` warms up, `+` continues an earlier conversation, `!` tells a fork that it is the one that `C` called."""
    rows = []
    for number in range(128):
        letter = chr(number)
        calls = [
            {"tool_use_id": f"use {letter}", "prompt": ord(CALLS.get(letter, "?")), "subagent_type": f"type {letter}"}
        ]
        flags = (letter.isupper(), letter == "!", letter == "w", letter == "+", False)
        results = ["use C"] if letter == "!" else []
        rows.append((number, 100, *flags, [number], results, calls if letter in CALLS else []))
    return pl.DataFrame(rows, schema=MESSAGE_FACTS, orient="row")


def recovered(*rows: dict[str, Any], **options: Any) -> Recovered:
    found = recover(pl.DataFrame(rows, schema=SCHEMA), facts(), RecoveryOptions(**options))
    check(TRANSCRIPT_ANSWERS, found.answers)
    check(TRANSCRIPT_AGENTS, found.agents)
    check(TRANSCRIPT_COMPACTIONS, found.compactions)
    return found


def agent_of(found: Recovered) -> dict[str, str]:
    """Message to agent."""
    return dict(found.answers.select("message_id", "agent_id").rows())


def session_of(found: Recovered) -> dict[str, str]:
    return dict(found.answers.select("message_id", "session_id").rows())


def links(found: Recovered) -> list[tuple[Any, ...]]:
    """All agents but main threads."""
    columns = ["agent_id", "parent_agent_id", "subagent_type", "link", "is_fork", "depth"]
    return found.agents.filter(pl.col("agent_id") != "main").select(columns).rows()


def test_nothing():
    found = recovered()
    assert (found.answers.height, found.agents.height, found.compactions.height) == (0, 0, 0)


def test_a_loop_is_a_main_thread_and_probes_are_nobody():
    found = recovered(
        request(0, "q", tools_id=None, model="small"),
        request(1, "a"),
        request(2, "t", tools_id=None, system_id=9),
        request(3, "aBc"),
    )
    assert agent_of(found) == {"a": "main", "aBc": "main"}
    assert found.agents.select("session_id", "agent_id", "parent_agent_id", "link", "depth").rows() == [
        ("s", "main", None, "main", 0)
    ]
    assert found.answers["answered_at"][0] == "2026-03-02T08:00:01.000000Z"
    assert found.answers["line"].to_list() == [2, 4]


def test_a_single_request_with_a_history_is_somebody():
    assert agent_of(recovered(request(0, "aBc", tools_id=None))) == {"aBc": "main"}


def test_a_question_about_a_conversation_is_nobody():
    found = recovered(request(0, "a"), request(1, "aBc"), request(2, "aBcDt", tools_id=None))
    assert agent_of(found) == {"a": "main", "aBc": "main"}


def test_agents_are_numbered_as_they_begin_and_stand_below_the_longest_thread():
    found = recovered(
        request(1, "a"), request(2, "y", tools_id=7), request(3, "x", model="n"), request(4, "aBc"),
        request(5, "xYz", model="n"), request(6, "aBcEf"),
    )  # fmt: skip
    assert agent_of(found) == {"a": "main", "aBc": "main", "aBcEf": "main", "y": "agent-1", "x": "agent-2",
                               "xYz": "agent-2"}  # fmt: skip
    assert links(found) == [("agent-1", "main", None, "none", False, 1), ("agent-2", "main", None, "none", False, 1)]


def test_what_lies_wholly_before_or_after_the_longest_thread_with_its_tools_is_more_of_it():
    found = recovered(
        request(1, "a"), request(2, "aBc"),
        request(10, "k", system_id=3), request(11, "kLm"), request(12, "kLmNo"), request(13, "kLmNoPq"),
        request(12.5, "v"), request(20, "x"), request(21, "xYz"),
    )  # fmt: skip
    agents = agent_of(found)
    assert {agents[message] for message in ("a", "aBc", "k", "kLmNo", "x", "xYz")} == {"main"}
    assert agents["v"] == "agent-1"


def test_without_tools_or_with_another_model_it_is_not():
    found = recovered(
        request(1, "a"), request(2, "aBc"), request(3, "aBcEf"), request(4, "x", model="n"), request(5, "y", tools_id=7)
    )
    assert agent_of(found) | {"x": "agent-1", "y": "agent-2"} == agent_of(found)
    chat = recovered(*(request(n, m, tools_id=None) for n, m in enumerate(("a", "aBc", "x", "xYz", "xYzAb"))))
    assert agent_of(chat) == {"a": "agent-1", "aBc": "agent-1", "x": "main", "xYz": "main", "xYzAb": "main"}


def test_sessions_are_apart_and_may_span_recordings():
    found = recovered(
        request(1, "a"), request(2, "aBc", database_id="ada/y.jsonl"), request(3, "aBcEf", session_id="t"),
        request(4, "x"),
    )  # fmt: skip
    rows = found.answers.select("message_id", "session_id", "agent_id").rows()
    assert rows == [("a", "s", "main"), ("aBc", "s", "main"), ("aBcEf", "t", "main"), ("x", "s", "main")]


def test_the_order_of_rows_does_not_matter():
    rows = [request(n, "aBcEfGhIj"[: 1 + 2 * n]) for n in range(5)] + [request(2.5, "xY"), request(3.5, "xYzZ")]
    straight, reverse = recovered(*rows), recovered(*reversed(rows))
    assert straight.answers.equals(reverse.answers)
    assert straight.agents.equals(reverse.agents)


def test_a_sub_agent_is_linked_by_the_prompt_of_its_call():
    """`C` calls with prompt `c`; its child calls with `d`."""
    found = recovered(
        request(1, "a", **NO_SESSION), request(2, "c", **NO_SESSION), request(3, "d", **NO_SESSION),
        request(4, "cDx", **NO_SESSION), request(5, "aCy", **NO_SESSION),
    )  # fmt: skip
    assert links(found) == [
        ("agent-1", "main", "type C", "prompt", False, 1),
        ("agent-2", "agent-1", "type D", "prompt", False, 2),
    ]
    assert found.agents["tool_use_id"].to_list() == [None, "use C", "use D"]
    assert len(set(session_of(found).values())) == 1


def test_a_prompt_that_was_sent_before_its_call_is_no_agents():
    found = recovered(request(1, "c", **NO_SESSION), request(2, "a", **NO_SESSION), request(3, "aCy", **NO_SESSION))
    assert links(found) == []
    assert len(set(session_of(found).values())) == 2


def test_a_fork_is_not_its_parents_next_turn():
    found = recovered(request(1, "a"), request(2, "aC!"), request(3, "aC!Xy"), request(4, "aCyZ"), request(5, "aCyZz"))
    assert agent_of(found) == {
        "a": "main",
        "aC!": "agent-1",
        "aC!Xy": "agent-1",
        "aCyZ": "main",
        "aCyZz": "main",
    }
    assert links(found) == [("agent-1", "main", "type C", "prompt", True, 1)]


def test_who_goes_back_or_changes_the_model_goes_on():
    found = recovered(
        request(1, "a", **NO_SESSION), request(2, "aBe", **NO_SESSION), request(3, "aBeFg", **NO_SESSION),
        request(4, "aBxYz", **NO_SESSION), request(5, "aBxYzVu", model="n", **NO_SESSION),
    )  # fmt: skip
    assert set(agent_of(found).values()) == {"main"}
    assert len(set(session_of(found).values())) == 1


def test_what_goes_on_elsewhere_is_a_fork():
    found = recovered(request(1, "aBe"), request(2, "aBeFg"), request(3, "aBxYz"), request(4, "aBeFgHi"))
    assert links(found) == [("agent-1", "main", None, "none", True, 1)]


def test_a_compacted_conversation_goes_on_and_its_summary_is_nobodys():
    """`F` is kept; what was asked after it in the request before was the summary."""
    found = recovered(
        request(1, "aBe", **NO_SESSION), request(2, "aBeGh", **NO_SESSION), request(3, "aBeGhFq", **NO_SESSION),
        request(4, "sFi", **NO_SESSION), request(5, "sFiKl", **NO_SESSION),
    )  # fmt: skip
    assert list(agent_of(found)) == ["aBe", "aBeGh", "sFi", "sFiKl"]
    assert found.compactions.select("agent_id", "line").rows() == [("main", 5)]
    assert found.answers.filter(message_id="sFi")["line"].item() == 6


def test_a_conversation_that_says_so_continues_the_one_that_ended_last():
    found = recovered(
        request(1, "a", **NO_SESSION), request(2, "aBe", **NO_SESSION), request(3, "x", **NO_SESSION),
        request(4, "xYz", **NO_SESSION), request(5, "+", **NO_SESSION),
    )  # fmt: skip
    sessions = session_of(found)
    assert sessions["+"] == sessions["x"] != sessions["a"]


def test_named_agents_are_as_they_are_named():
    found = recovered(
        request(1, "a"), request(2, "a", named_agent="x1", row_id=7), request(3, "aBe"),
        request(4, "zYv", named_agent="x1"),
    )  # fmt: skip
    assert found.answers.select("message_id", "agent_id").rows() == [
        ("a", "main"), ("a", "x1"), ("aBe", "main"), ("zYv", "x1"),
    ]  # fmt: skip


def test_warm_ups_and_unlinked_agents_stand_below_who_was_at_work():
    found = recovered(
        request(1, "a", **NO_SESSION), request(2, "w", tools_id=None, **NO_SESSION),
        request(3, "u", is_subagent=True, tools_id=5, **NO_SESSION), request(4, "aBe", **NO_SESSION),
    )  # fmt: skip
    assert links(found) == [
        ("agent-1", "main", "warmup", "none", False, 1),
        ("agent-2", "main", None, "none", False, 1),
    ]


def test_a_name_stays_while_a_conversation_grows_and_wherever_it_stands():
    short = recovered(request(1, "a", **NO_SESSION))
    grown = recovered(request(1, "a", row_id=44, database_id="ada/z", **NO_SESSION), request(2, "aBe", **NO_SESSION))
    assert session_of(short)["a"] == session_of(grown)["a"] == session_of(grown)["aBe"]
    assert session_of(short)["a"].startswith("recovered-")


@pytest.mark.parametrize(("least", "expected"), [(9000, ["a", "x"]), (9001, ["x"]), (9999, [])])
def test_short_prefixes_are_other_clients(least, expected):
    rows = request(1, "a", **NO_SESSION), request(2, "x", prefix_tokens=9500, **NO_SESSION)
    found = recovered(*rows, min_prefix_tokens=least)
    assert found.answers["message_id"].to_list() == expected
    assert found.n_short == 2 - len(expected)


def test_of_a_conversation_that_a_transcript_names_nothing_is_recovered():
    found = recovered(
        request(1, "a", **NO_SESSION), request(2, "c", **NO_SESSION), request(3, "aCy", is_indexed=True, **NO_SESSION),
        request(4, "x", **NO_SESSION),
    )  # fmt: skip
    assert found.answers["message_id"].to_list() == ["x"]
