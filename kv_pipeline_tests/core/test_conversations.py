from __future__ import annotations

import polars as pl
import pytest

from kv_pipeline.core.conversations import index_conversations, owners
from kv_pipeline.core.twins import index_messages
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.store import check
from kv_pipeline_tests.factories import agents, answers, at, compactions, raw_request, raw_requests


def index_of(rows, found, some_agents=({"session_id": "s"},), boundaries=()):
    frame = raw_requests(*rows)
    databases = frame.partition_by("database_id", maintain_order=True) or [frame]
    messages = pl.concat(index_messages(database) for database in databases)
    index = index_conversations("ada", frame, messages, answers(*found), agents(*some_agents), compactions(*boundaries))
    for model, table in zip((CONVERSATION_REQUESTS, AGENTS, UNINDEXED_REQUESTS, CONVERSATIONS), index, strict=True):
        check(model, table)
    return index


def reasons(index):
    return {(db, row): reason for db, row, reason in index.unindexed.select("database_id", "row_id", "reason").rows()}


def placed(index, *columns):
    return index.requests.select(columns).rows()


# --- Owners -----------------------------------------------------------------------------------------------------------


def owner_of(found, some_agents):
    rows = owners(answers(*found), agents(*some_agents)).select("message_id", "session_id", "agent_id").rows()
    return {message: (session, agent) for message, session, agent in rows}


MAINS = [{"session_id": "s1"}, {"session_id": "s2"}]


def test_a_session_resumed_in_a_new_file_keeps_only_what_is_new():
    first = [("s1", "main", 1, "a", 0), ("s1", "main", 2, "b", 1)]
    copied = [("s2", "main", 1, "a", 0), ("s2", "main", 2, "b", 1), ("s2", "main", 3, "c", 9)]
    expected = {"a": ("s1", "main"), "b": ("s1", "main"), "c": ("s2", "main")}
    assert owner_of(first + copied, MAINS) == expected
    assert owner_of(copied + first, MAINS) == expected


def test_both_sessions_go_on_and_the_one_that_did_first_owns_the_history():
    first = [("s1", "main", 1, "a", 0), ("s1", "main", 2, "b", 5)]
    second = [("s2", "main", 1, "a", 0), ("s2", "main", 2, "c", 3)]
    assert owner_of(first + second, MAINS) == {"a": ("s2", "main"), "b": ("s1", "main"), "c": ("s2", "main")}


def test_of_two_equal_copies_the_first_name_owns():
    assert owner_of([("s2", "main", 1, "a", 0), ("s1", "main", 1, "a", 0)], MAINS) == {"a": ("s1", "main")}


def test_of_two_copies_without_own_answers_the_shorter_owns():
    longer = [("s1", "main", 1, "a", 0), ("s1", "main", 2, "b", 1)]
    assert owner_of([*longer, ("s2", "main", 1, "a", 0)], MAINS)["a"] == ("s2", "main")


def test_a_fork_leaves_copied_answers_to_its_parent():
    some = [
        {"session_id": "s1"},
        {"session_id": "s1", "agent_id": "fork", "is_fork": True, "depth": 1, "link": "meta"},
        {"session_id": "s1", "agent_id": "plain", "depth": 1, "link": "meta"},
    ]
    found = [
        ("s1", "fork", 1, "a", 0), ("s1", "main", 1, "a", 0), ("s1", "fork", 2, "b", 1), ("s1", "plain", 1, "b", 1),
        ("s1", "fork", 3, "c", 2),
    ]  # fmt: skip
    assert owner_of(found, some) == {"a": ("s1", "main"), "b": ("s1", "plain"), "c": ("s1", "fork")}


# --- Requests ---------------------------------------------------------------------------------------------------------


def test_requests_that_share_a_second_are_ordered_by_messages_then_rows():
    rows = [
        raw_request(1, 5, message_segments=[2, 3, 4]),
        raw_request(2, 5, message_segments=[2]),
        raw_request(3, 5, message_segments=[2]),
        raw_request(4, 1, message_segments=[2, 3, 4, 5]),
    ]
    index = index_of(rows, [("s", "main", n, f"msg{n}", n) for n in (1, 2, 3, 4)])
    assert placed(index, "request_index", "billed_row_id") == [(0, 4), (1, 2), (2, 3), (3, 1)]


def test_turns_go_on_with_tool_results():
    stops = ["tool_use", "end_turn", "end_turn", "tool_use", None]
    rows = [raw_request(n, n, stop_reason=stop) for n, stop in enumerate(stops)]
    index = index_of(rows, [("s", "main", n, f"msg{n}", n) for n in range(5)])
    assert index.requests["turn_index"].to_list() == [0, 0, 1, 2, 2]


def test_agents_count_their_own_requests_and_turns():
    some = [{"session_id": "s"}, {"session_id": "s", "agent_id": "a", "depth": 1, "link": "none"}]
    rows = [raw_request(n, n) for n in range(4)]
    found = [("s", "main" if n % 2 else "a", n, f"msg{n}", n) for n in range(4)]
    index = index_of(rows, found, some)
    assert placed(index, "agent_id", "request_index", "agent_request_index", "turn_index") == [
        ("a", 0, 0, 0), ("main", 1, 0, 0), ("a", 2, 1, 1), ("main", 3, 1, 1),
    ]  # fmt: skip
    assert index.agents.select("agent_id", "n_requests").rows() == [("main", 2), ("a", 2)]
    assert index.conversations.select("n_requests", "n_agents").rows() == [(4, 2)]


def test_agents_without_requests_stay_listed():
    idle = {"session_id": "s", "agent_id": "idle", "depth": 1, "link": "meta"}
    index = index_of([raw_request(1)], [("s", "main", 1, "msg1", 0)], [{"session_id": "s"}, idle])
    assert index.agents.select("agent_id", "n_requests").rows() == [("main", 1), ("idle", 0)]
    assert index.conversations["n_agents"].to_list() == [1]


def test_the_request_after_a_compaction_is_marked():
    rows = [raw_request(n, n) for n in range(4)]
    found = [("s", "main", 10 * n, f"msg{n}", n) for n in range(4)]
    index = index_of(rows, found, boundaries=[("s", "main", 15), ("s", "main", 99), ("s", "other", 1)])
    assert index.requests["is_after_compaction"].to_list() == [False, False, True, False]
    assert index.conversations["n_compactions"].to_list() == [3]


def test_a_twin_is_one_request_with_answer_and_bill_from_two_rows():
    rows = [
        raw_request(1, 0, content_id=7),
        raw_request(2, 1, content_id=7, is_streaming=False, stop_reason="tool_use", routed_model="cheaper"),
        raw_request(3, 2, content_id=7, is_streaming=False),
    ]
    index = index_of(rows, [("s", "main", 1, "msg2", 1)])
    assert placed(index, "billed_row_id", "answer_row_id", "message_id", "n_replays", "requested_at_utc") == [
        (1, 2, "msg2", 2, at(0))
    ]
    assert reasons(index) == {("ada/db", 3): "replay_twin"}


def test_models_are_those_that_answered():
    rows = [raw_request(1, routed_model="b"), raw_request(2, 1, model="a")]
    index = index_of(rows, [("s", "main", n, f"msg{n}", n) for n in (1, 2)])
    assert index.conversations["models"].to_list() == [["a", "b"]]


@pytest.mark.parametrize(
    ("ttls", "lifetime"), [([], None), ([["5m"]], "5m"), ([["5m"], ["1h", "5m"]], "1h"), ([[], ["5m"]], "5m")]
)
def test_marked_lifetime_is_the_longest_asked_for(ttls, lifetime):
    marks = [{"section": "system", "item_index": None, "block_index": 0, "ttl": None}]
    rows = [
        raw_request(n, n, breakpoints=[{**marks[0], "ttl": ttl} for ttl in own]) for n, own in enumerate(ttls or [[]])
    ]
    index = index_of(rows, [("s", "main", n, f"msg{n}", n) for n in range(len(rows))])
    assert index.conversations["marked_lifetime"].to_list() == [lifetime]


# --- Databases --------------------------------------------------------------------------------------------------------


def test_a_conversation_over_two_databases():
    rows = [raw_request(1, 0, database_id="ada/2"), raw_request(2, 9, database_id="ada/1")]
    index = index_of(rows, [("s", "main", 1, "msg1", 0), ("s", "main", 2, "msg2", 9)])
    assert placed(index, "database_id", "request_index") == [("ada/2", 0), ("ada/1", 1)]
    assert index.unindexed.is_empty()


def twice(*rows):
    return [{**row, "database_id": name} for name in ("ada/1", "ada/2") for row in rows]


def test_the_same_database_under_two_names_counts_once():
    index = index_of(twice(raw_request(1), raw_request(2, 5)), [("s", "main", n, f"msg{n}", n) for n in (1, 2)])
    assert placed(index, "database_id", "billed_row_id") == [("ada/1", 1), ("ada/1", 2)]
    assert reasons(index) == {("ada/2", 1): "duplicate", ("ada/2", 2): "duplicate"}
    assert index.conversations["match_rate"].to_list() == [1.0]


def test_both_halves_of_a_turn_are_duplicates_in_a_copy():
    turn = [raw_request(1, content_id=7), raw_request(2, 1, content_id=7, is_streaming=False)]
    index = index_of(twice(*turn), [("s", "main", 1, "msg2", 1)])
    assert reasons(index) == {("ada/2", 1): "duplicate", ("ada/2", 2): "duplicate"}


def test_of_two_copies_the_one_with_both_twins_counts():
    half = raw_request(2, 1, content_id=7, is_streaming=False, database_id="ada/1")
    whole = [
        raw_request(1, content_id=7, database_id="ada/2"),
        raw_request(2, 1, content_id=7, is_streaming=False, database_id="ada/2"),
    ]
    index = index_of([half, *whole], [("s", "main", 1, "msg2", 1)])
    assert placed(index, "database_id", "billed_row_id", "answer_row_id") == [("ada/2", 1, 2)]
    assert reasons(index) == {("ada/1", 2): "duplicate"}


# --- What is in no trace ----------------------------------------------------------------------------------------------

TRACED = raw_request(1, 0, content_id=1, message_segments=[2, 3])


@pytest.mark.parametrize(
    ("row", "reason", "conversation"),
    [
        pytest.param({"outcome": "error", "message_id": None}, "failed_attempt", "ada/s", id="refused"),
        pytest.param({"outcome": "aborted", "content_id": 9}, "failed_attempt", "ada/s", id="broken off"),
        pytest.param({"outcome": "no_response", "message_id": None, "message_segments": [8]}, "failed_attempt", None,
                     id="nobody's"),
        pytest.param({"content_id": 1}, "retry", "ada/s", id="same content again"),
        pytest.param({"message_segments": [2, 9]}, "side_request", "ada/s", id="same beginning"),
        pytest.param({"tools_segment": None, "message_segments": [8]}, "side_request", None, id="no tools"),
        pytest.param({"message_segments": [8]}, "unknown", None, id="no trace of it"),
        pytest.param({"message_segments": []}, "unknown", None, id="no messages"),
        pytest.param({"message_segments": [2, 9], "requested_at_utc": at(-5)}, "unknown", None, id="before it began"),
    ],
)  # fmt: skip
def test_reasons(row, reason, conversation):
    index = index_of([TRACED, raw_request(2, 5, **row)], [("s", "main", 1, "msg1", 0)])
    assert index.unindexed.select("row_id", "reason", "conversation_id").rows() == [(2, reason, conversation)]


def test_replays_of_what_no_transcript_names_are_twins():
    rows = [
        TRACED,
        raw_request(2, 5, content_id=5, message_segments=[8]),
        raw_request(3, 6, content_id=5, message_segments=[8], is_streaming=False),
    ]
    index = index_of(rows, [("s", "main", 1, "msg1", 0)])
    assert reasons(index) == {("ada/db", 2): "unknown", ("ada/db", 3): "replay_twin"}


def test_every_row_is_traced_or_listed():
    rows = [raw_request(n, n, content_id=n % 3, is_streaming=n % 2 == 0) for n in range(12)]
    index = index_of(rows, [("s", "main", n, f"msg{n}", n) for n in (1, 4, 9)])
    used = {row for columns in placed(index, "billed_row_id", "answer_row_id") for row in columns}
    listed = set(index.unindexed["row_id"])
    assert used | listed == set(range(12))
    assert not used & listed


# --- Conversations ----------------------------------------------------------------------------------------------------


def test_a_session_that_no_database_knows():
    index = index_of([], [("s", "main", 1, "msg1", 0)])
    (row,) = index.conversations.to_dicts()
    assert (row["conversation_id"], row["n_requests"], row["n_transcript_answers"]) == ("ada/s", 0, 1)
    assert (row["match_rate"], row["first_request_at_utc"], row["fingerprint"]) == (0.0, None, "")


def test_match_rate_is_the_share_of_answers_found():
    index = index_of([raw_request(1)], [("s", "main", n, f"msg{n}", n) for n in (1, 2, 3, 4)])
    assert index.conversations["match_rate"].to_list() == [0.25]


def fingerprint(rows=(TRACED,), some_agents=({"session_id": "s"},), boundaries=(), message="msg1"):
    return index_of(rows, [("s", "main", 1, message, 0)], some_agents, boundaries).conversations["fingerprint"][0]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"rows": [TRACED | {"row_digest": 99}]}, id="a row says something else"),
        pytest.param({"some_agents": [{"session_id": "s", "subagent_type": "x"}]}, id="an agent is called otherwise"),
        pytest.param({"boundaries": [("s", "main", 0)]}, id="compacted"),
        pytest.param({"rows": [TRACED | {"database_id": "ada/other"}]}, id="from another database"),
    ],
)
def test_fingerprints_change_with_what_partitions_are_made_of(changed):
    assert fingerprint() != fingerprint(**changed)


def test_fingerprints_do_not_change_with_others():
    other = raw_request(5, 50, message_segments=[8])
    assert fingerprint() == fingerprint(rows=[TRACED, other])
