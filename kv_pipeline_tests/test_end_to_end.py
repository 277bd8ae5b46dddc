"""The committed example through all steps, against what was planted in it and against the oracle."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from kv_pipeline.demo import EXAMPLE, write_landing
from kv_pipeline.landing import discover
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS, SKIPPED_INPUT
from kv_pipeline.steps import conversations, databases, plan
from kv_pipeline_tests.comparison import assert_user_as_defined
from kv_pipeline_tests.factories import (
    answer_record,
    bring_up_to_date,
    growing_turns,
    open_store,
    write_database,
    write_transcript,
)

INBOX = Path(__file__).parents[1] / "data" / "example"
USERS = ("ada", "grace", "linus")
LOG_USER = "hedy"
"""Has a log and no transcripts."""


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return write_landing(tmp_path_factory.mktemp("truth"), size=EXAMPLE, seed=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = open_store(tmp_path_factory.mktemp("example"), patch)
        bring_up_to_date(made, INBOX)
        yield made


@pytest.mark.parametrize(("user", "n_requests"), [("ada", 22), ("grace", 10), ("linus", 18)])
def test_every_request_is_the_oracles(store, tmp_path, user, n_requests):
    assert assert_user_as_defined(store, INBOX / user, tmp_path) == n_requests


@pytest.mark.parametrize("block_size", [16, 1000])
def test_other_block_sizes(tmp_path, monkeypatch, block_size):
    made = open_store(tmp_path / "store", monkeypatch, block_size=block_size)
    bring_up_to_date(made, INBOX)
    assert_user_as_defined(made, INBOX / "linus", tmp_path / "out")


def test_turns_are_those_planted(store, truth):
    requests = store.read(CONVERSATION_REQUESTS, USERS).sort("conversation_id", "agent_id", "agent_request_index")
    raw = store.read(RAW_REQUESTS, store.partitions(RAW_REQUESTS.name))
    billed = raw.select("database_id", billed_row_id="row_id", billed_id="message_id")
    found = requests.join(billed, on=["database_id", "billed_row_id"], maintain_order="left")
    named: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for conversation, agent, message, paid in found.select(
        "conversation_id", "agent_id", "message_id", "billed_id"
    ).iter_rows():
        named.setdefault((conversation, agent), []).append((message, paid))
    for planted in truth.conversations:
        for agent in planted.agents:
            places = [(f"{planted.user}/{session}", agent.agent_id or "main") for session in planted.session_ids]
            turns = [turn for place in places for turn in named.pop(place, [])]
            assert turns == list(zip(agent.message_ids, agent.billed_ids, strict=True))
    assert not named


def test_rows_without_a_place_are_those_planted(store, truth):
    unindexed = store.read(UNINDEXED_REQUESTS, USERS)
    requests = store.read(CONVERSATION_REQUESTS, USERS)
    found = Counter(unindexed["reason"])
    # A replayed turn is traced by two rows, its streaming twin and the replay that the transcript names.
    found["replay_twin"] += requests.filter(pl.col("answer_row_id") != pl.col("billed_row_id")).height
    planted = Counter(truth.unindexed)
    assert found["failed_attempt"] == planted["failed_attempt"] + planted["aborted_stream"]
    assert found["side_request"] == planted["side_request"] + planted["compaction"]
    assert found["replay_twin"] == planted["replay_twin"]
    assert set(found) == {"failed_attempt", "side_request", "replay_twin"}
    assert store.read(SKIPPED_INPUT, store.partitions(SKIPPED_INPUT.name)).is_empty()


def test_agents_are_those_planted(store, truth):
    agents = {(row["conversation_id"], row["agent_id"]): row for row in store.read(AGENTS, USERS).to_dicts()}
    for planted in truth.conversations:
        for agent in planted.agents[1:]:
            (row,) = [
                found
                for session in planted.session_ids
                if (found := agents.get((f"{planted.user}/{session}", agent.agent_id))) and found["n_requests"]
            ]
            assert row["parent_agent_id"] == (agent.parent_id or "main")
            assert (row["link"] != "none") is agent.is_linked
            assert row["subagent_type"] == agent.kind.replace("Warmup", "warmup")
            assert row["is_fork"] is (agent.kind == "fork")
            assert row["n_requests"] == agent.turns
            assert row["depth"] == (2 if agent.parent_id else 1)


def test_every_answer_of_the_transcripts_is_found(store):
    known = store.read(CONVERSATIONS, USERS)
    assert known["match_rate"].to_list() == [1.0] * 7
    assert dict(known.group_by("user_id").agg(pl.col("n_compactions").sum()).iter_rows()) == {
        "ada": 1, "grace": 0, "linus": 0,
    }  # fmt: skip
    assert set(known.filter(pl.col("user_id") == "grace")["marked_lifetime"]) == {"1h"}


# --- Incremental: whatever the way there, the store is the same file for file -----------------------------------------


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch):
    rebuilt = open_store(tmp_path / "rebuilt", monkeypatch)
    bring_up_to_date(rebuilt, inbox)
    found, expected = contents(store.root), contents(rebuilt.root)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.fixture
def inbox(tmp_path):
    """A copy of the example with its times, so fingerprints agree."""
    shutil.copytree(INBOX, tmp_path / "inbox", copy_function=shutil.copy2)
    return tmp_path / "inbox"


def test_a_log_without_transcripts_has_the_structure_that_was_planted(store, truth):
    """A main thread of four turns and an `Explore` sub-agent of two, told by content alone."""
    agents = store.read(AGENTS, [LOG_USER]).select("agent_id", "parent_agent_id", "link", "n_requests").rows()
    assert agents == [("main", None, "main", 4), ("agent-1", "main", "prompt", 2)]
    reasons = Counter(store.read(UNINDEXED_REQUESTS, [LOG_USER])["reason"])
    assert reasons == {"side_request": 2, "failed_attempt": 2}
    assert sum(truth.logs.values()) == 6 + 4


@pytest.mark.parametrize("is_reversed", [False, True], ids=["in order", "reversed"])
def test_recordings_added_one_after_the_other(inbox, tmp_path, monkeypatch, is_reversed):
    store = open_store(tmp_path / "store", monkeypatch)
    waiting = tmp_path / "waiting"
    paths = sorted([*inbox.glob("*/*.db"), *inbox.glob("*/.claude-trace/*.jsonl")], reverse=is_reversed)
    for path in paths:
        place = waiting / path.relative_to(inbox)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    assert len(bring_up_to_date(store, inbox)["conversations"]) == 7  # approximate, until the databases come
    for path in paths:
        relative = path.relative_to(inbox)
        (waiting / relative).rename(path)
        done = bring_up_to_date(store, inbox)
        assert done["users"] == [relative.parts[0]]
        assert all(key.startswith(relative.parts[0] + "/") for key in done["conversations"])
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_users_added_one_after_the_other(inbox, tmp_path, monkeypatch):
    store = open_store(tmp_path / "store", monkeypatch)
    everybody = (*USERS, LOG_USER)
    for user in everybody:
        (inbox / user).rename(tmp_path / user)
    for user in everybody:
        (tmp_path / user).rename(inbox / user)
        assert bring_up_to_date(store, inbox)["users"] == [user]
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_nothing_is_done_twice(inbox, tmp_path, monkeypatch):
    store = open_store(tmp_path / "store", monkeypatch)
    bring_up_to_date(store, inbox)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    assert bring_up_to_date(store, inbox) == {"databases": [], "users": [], "conversations": []}
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before


def test_steps_can_be_repeated(inbox, tmp_path, monkeypatch):
    store = open_store(tmp_path / "store", monkeypatch)
    bring_up_to_date(store, inbox)
    before = contents(store.root)
    for key, file in discover(inbox).databases.items():
        databases.ingest_database(store, file)
        databases.index_database(store, key)
    keys = store.partitions("traces")
    for step in (
        conversations.tokenize_conversations,
        conversations.trace_conversations,
        conversations.validate_conversations,
    ):
        step(store, keys[::-1])
    assert contents(store.root) == before


def test_a_database_that_grew_by_a_request(inbox, tmp_path, monkeypatch):
    """The last turn of one conversation is taken away, and comes back."""
    store = open_store(tmp_path / "store", monkeypatch)
    path = inbox / "grace" / "requests.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        (last,) = connection.execute("SELECT max(rowid) FROM requests").fetchone()
        row = connection.execute("SELECT * FROM requests WHERE rowid = ?", (last,)).fetchone()
        connection.execute("DELETE FROM requests WHERE rowid = ?", (last,))
    bring_up_to_date(store, inbox)
    n_before = store.read(RAW_REQUESTS, ["grace/requests"]).height
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"INSERT INTO requests VALUES ({', '.join('?' * len(row))})", row)
    done = bring_up_to_date(store, inbox)
    assert store.read(RAW_REQUESTS, ["grace/requests"]).height == n_before + 1
    assert done["databases"] == ["grace/requests"]
    assert done["users"] == ["grace"]
    assert done["conversations"] == ["grace/d71915b2-3882-4a94-9f86-b4e8fdf24152"]
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_an_answer_that_came_later(tmp_path, monkeypatch):
    """The proxy writes a row when the request comes and completes it when the answer has come."""
    store = open_store(tmp_path / "store", monkeypatch)
    inbox = tmp_path / "inbox"
    rows = growing_turns("a", 2)
    path = write_database(inbox / "ada" / "requests.db", [*rows[:1], (*rows[1][:-1], None)])
    write_transcript(inbox / "ada", "s1", [("a-0", 0), ("a-1", 60)])
    bring_up_to_date(store, inbox)
    assert store.read(CONVERSATIONS, ["ada"])["n_requests"].to_list() == [1]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE requests SET response = ? WHERE id = ?", (rows[1][-1], rows[1][0]))
    assert bring_up_to_date(store, inbox)["conversations"] == ["ada/s1"]
    assert store.read(CONVERSATIONS, ["ada"])["n_requests"].to_list() == [2]
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_a_transcript_that_grew(tmp_path, monkeypatch):
    store = open_store(tmp_path / "store", monkeypatch)
    inbox = tmp_path / "inbox"
    write_database(inbox / "ada" / "requests.db", [*growing_turns("a", 3), *growing_turns("b", 2)])
    write_transcript(inbox / "ada", "s1", [("a-0", 0), ("a-1", 60)])
    write_transcript(inbox / "ada", "s2", [("b-0", 0), ("b-1", 60)])
    assert bring_up_to_date(store, inbox)["conversations"] == ["ada/s1", "ada/s2"]
    write_transcript(inbox / "ada", "s1", [("a-0", 0), ("a-1", 60), ("a-2", 120)])
    assert bring_up_to_date(store, inbox) == {"databases": [], "users": ["ada"], "conversations": ["ada/s1"]}
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_a_touched_database_remakes_nothing_after_it(inbox, tmp_path, monkeypatch):
    store = open_store(tmp_path / "store", monkeypatch)
    bring_up_to_date(store, inbox)
    (inbox / "ada" / "requests.db").touch()
    assert bring_up_to_date(store, inbox) == {"databases": ["ada/requests"], "users": [], "conversations": []}


def test_a_conversation_that_is_gone_loses_its_partitions(tmp_path, monkeypatch):
    store = open_store(tmp_path / "store", monkeypatch)
    inbox = tmp_path / "inbox"
    write_database(inbox / "ada" / "requests.db", [*growing_turns("a", 2), *growing_turns("b", 2)])
    write_transcript(inbox / "ada", "s1", [("a-0", 0), ("a-1", 60)])
    write_transcript(inbox / "ada", "s2", [("b-0", 0), ("b-1", 60)])
    bring_up_to_date(store, inbox)
    transcript = write_transcript(inbox / "ada", "s1", [])
    without_time = answer_record("s1", "nobody's", 0) | {"timestamp": "never"}  # nothing can be made of this one
    transcript.write_text(json.dumps(without_time) + "\n")
    bring_up_to_date(store, inbox)
    assert [store.partitions(table) for table in plan.CONVERSATION_TABLES] == [["ada/s2"]] * 3
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_a_conversation_of_one_request(tmp_path, monkeypatch):
    store = open_store(tmp_path / "store", monkeypatch)
    inbox = tmp_path / "inbox"
    write_database(inbox / "ada" / "requests.db", growing_turns("a", 1))
    write_transcript(inbox / "ada", "s1", [("a-0", 0)])
    bring_up_to_date(store, inbox)
    assert store.read(CONVERSATIONS, ["ada"])["n_requests"].to_list() == [1]
    assert store.partitions("traces") == ["ada/s1"]
