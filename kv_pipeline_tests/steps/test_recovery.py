"""Structure of logs without transcripts, held against what transcripts say of the same traffic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.store import Store
from kv_pipeline_tests.as_log import agents_compared, sessions_of, write_log
from kv_pipeline_tests.factories import (
    assistant_message,
    bring_up_to_date,
    open_store,
    user_message,
    write_transcript,
)
from kv_pipeline_tests.recovery_truth import MIN_SAME_AGENT, beginnings, hide_transcripts, places, same_agent, tree
from kv_pipeline_tests.sources.factories import make_log, make_pair

EXAMPLE = Path("data/example").resolve()
TOOLS = [{"name": "Read", "description": "Reads a file."}]


def session(name: str) -> dict[str, str]:
    return {"user_id": f"user_1_account_2_session_{name}"}


def loop(n_requests: int, prefix: str = "m", **body) -> list[dict]:
    """Pairs of an agent loop, a request every 10 s."""
    messages, pairs = [user_message(f"{prefix} begins " + "with the harbour " * 30)], []
    for n in range(n_requests):
        pair = make_pair({"messages": list(messages), "tools": TOOLS, **body}, message_id=f"{prefix}{n}")
        pair["request"]["timestamp"] += 10 * n
        pair["response"]["timestamp"] += 10 * n
        pairs.append(pair)
        messages += [assistant_message(f"{prefix} answers {n}"), user_message(f"{prefix} asks {n} " + "again " * 40)]
    return pairs


def probe(at_s: float, name: str = "q", **body) -> dict:
    pair = make_pair({"messages": [user_message(name)], **body}, message_id=name)
    pair["request"]["timestamp"] += at_s
    return pair


def placed(store: Store) -> dict[str, tuple[str, str]]:
    """Message to conversation and agent."""
    rows = store.read(CONVERSATION_REQUESTS, ["ada"]).select("message_id", "conversation_id", "agent_id").rows()
    return {message: (conversation, agent) for message, conversation, agent in rows}


def reasons(store: Store) -> dict[str, int]:
    return dict(store.read(UNINDEXED_REQUESTS, ["ada"])["reason"].value_counts().iter_rows())


def test_a_log_without_sessions_is_one_conversation(inbox, store):
    pairs = [probe(-1), *loop(3), probe(2, "t"), *loop(2, "s", model="other"), make_pair(response=None)]
    make_log(inbox / "ada" / ".claude-trace" / "log-1.jsonl", pairs)
    bring_up_to_date(store, inbox)
    key = "ada/%2Eclaude-trace+log-1.jsonl"
    main, agent = (key, "main"), (key, "agent-1")
    assert placed(store) == {"m0": main, "m1": main, "m2": main, "s0": agent, "s1": agent}
    assert reasons(store) == {"side_request": 2, "failed_attempt": 1}
    known = store.read(CONVERSATIONS, ["ada"]).row(0, named=True)
    assert (known["structure"], known["n_transcript_answers"], known["match_rate"]) == ("content", 0, None)
    assert (known["n_requests"], known["n_agents"]) == (5, 2)
    assert store.partitions(TRACES.name) == [key]
    assert store.read(TRACES, [key])["t_s"].to_list() == [0, 0, 10, 10, 20]
    assert store.read(TOKENIZED_BLOCKS, [key]).height == 5
    assert bring_up_to_date(store, inbox) == {"databases": [], "users": [], "conversations": []}


def test_a_turn_that_was_replayed_without_streaming_counts_once(inbox, store):
    first, second = loop(2)
    replay = loop(1, stream=False)[0]
    replay["request"]["timestamp"] += 2
    replay["response"]["body"]["id"] = "replay"
    make_log(inbox / "ada" / "log.jsonl", [first, replay, second])
    bring_up_to_date(store, inbox)
    assert list(placed(store)) == ["replay", "m1"]  # the client went by the replay's answer
    rows = store.read(CONVERSATION_REQUESTS, ["ada"]).select("billed_row_id", "answer_row_id", "n_replays").rows()
    assert rows == [(1, 2, 1), (3, 3, 0)]
    assert reasons(store) == {}


def test_a_session_spans_logs_and_a_log_has_sessions(inbox, store):
    climbing = {"user_id": json.dumps({"session_id": "../s2"})}
    whole, other = loop(4, metadata=session("s1")), loop(2, "o", metadata=climbing)
    make_log(inbox / "ada" / "log-1.jsonl", whole[:2] + other)
    make_log(inbox / "ada" / "log-2.jsonl", whole[2:])
    bring_up_to_date(store, inbox)
    assert set(placed(store).values()) == {("ada/s1", "main"), ("ada/%2E%2E%2Fs2", "main")}
    assert store.read(CONVERSATIONS, ["ada"])["n_requests"].to_list() == [2, 4]


def test_a_log_that_grows_gives_what_reading_it_at_once_gives(inbox, store, tmp_path, monkeypatch):
    pairs = [*loop(3, metadata=session("s1")), *loop(4, "o", metadata=session("s2"))]
    log = make_log(inbox / "ada" / "log.jsonl", pairs[:5])
    bring_up_to_date(store, inbox)
    before = store.path(TRACES.name, "ada/s1").stat().st_mtime_ns
    make_log(log, pairs)
    assert bring_up_to_date(store, inbox)["conversations"] == ["ada/s2"]
    assert store.path(TRACES.name, "ada/s1").stat().st_mtime_ns == before
    at_once = open_store(tmp_path / "at once", monkeypatch)
    bring_up_to_date(at_once, inbox)
    for model in (CONVERSATIONS, CONVERSATION_REQUESTS, AGENTS, UNINDEXED_REQUESTS):
        assert store.path(model.name, "ada").read_bytes() == at_once.path(model.name, "ada").read_bytes()
    assert store.path(TRACES.name, "ada/s2").read_bytes() == at_once.path(TRACES.name, "ada/s2").read_bytes()


def test_what_transcripts_name_is_theirs(inbox, store):
    """Of a session with a transcript nothing is guessed, and its answers count wherever they were recorded."""
    make_log(inbox / "ada" / "log.jsonl", [*loop(3, metadata=session("s1")), *loop(2, "o", metadata=session("s2"))])
    write_transcript(inbox / "ada", "s1", [("m0", 0)], agent="a1")
    write_transcript(inbox / "ada", "s3", [("o0", 0)])
    bring_up_to_date(store, inbox)
    assert placed(store) == {"m0": ("ada/s1", "a1"), "o0": ("ada/s3", "main")}
    assert set(store.read(CONVERSATIONS, ["ada"])["structure"]) == {"transcripts"}
    assert reasons(store) == {"side_request": 3}


def test_traffic_that_a_proxy_and_a_log_recorded_counts_once(inbox, store, tmp_path):
    shutil.copytree(EXAMPLE / "grace", inbox / "grace")
    bring_up_to_date(store, inbox)
    before = store.read(CONVERSATION_REQUESTS, ["grace"])
    sessions = sessions_of(store, "grace")
    write_log(inbox / "grace" / "log.jsonl", EXAMPLE / "grace" / "requests.db", "grace/requests", sessions)
    bring_up_to_date(store, inbox)
    assert store.read(CONVERSATION_REQUESTS, ["grace"]).drop("database_id").equals(before.drop("database_id"))
    assert "duplicate" in store.read(UNINDEXED_REQUESTS, ["grace"])["reason"]


@pytest.mark.parametrize("user", ["ada", "grace"])
def test_agents_of_newer_clients_are_those_of_the_transcripts(inbox, store, tmp_path, monkeypatch, user):
    shutil.copytree(EXAMPLE / user, inbox / user)
    bring_up_to_date(store, inbox)
    logs, logged = tmp_path / "logs", open_store(tmp_path / "logged", monkeypatch)
    for database in (inbox / user).glob("*.db"):
        log = logs / user / f"{database.stem}.jsonl"
        write_log(log, database, f"{user}/{database.stem}", sessions_of(store, user))
    bring_up_to_date(logged, logs)
    compared = agents_compared(store, logged, user)
    assert compared.null_count().sum_horizontal().item() == 0
    assert compared.select("session", "agent").is_unique().all()
    assert compared.select("session", "recovered").is_unique().all()
    assert compared.filter((pl.col("agent") == "main") != (pl.col("recovered") == "main")).is_empty()


@pytest.mark.parametrize("user", ["ada", "grace", "linus"])
def test_databases_without_transcripts_give_what_transcripts_tell(inbox, store, tmp_path, monkeypatch, user):
    shutil.copytree(EXAMPLE / user, inbox / user)
    bring_up_to_date(store, inbox)
    recovered = open_store(tmp_path / "recovered", monkeypatch)
    hide_transcripts(EXAMPLE / user, tmp_path / "hidden" / user)
    bring_up_to_date(recovered, tmp_path / "hidden")
    assert min(same_agent(store, recovered, user)) >= MIN_SAME_AGENT
    assert tree(recovered, user) == tree(store, user)
    assert places(recovered, user) == places(store, user)
    assert set(recovered.read(CONVERSATIONS, [user])["structure"]) == {"content"}


@pytest.mark.parametrize(("user", "precision"), [("ada", 1.0), ("linus", 1.0), ("grace", 14 / 24)])
def test_content_alone_tells_agents_but_not_the_ids_of_their_sessions(
    inbox, store, tmp_path, monkeypatch, user, precision
):
    """grace resumes a session of 5 requests under a new id for 2 more.

    What is sent then is what a session resumed under its old id sends. By content both are one agent that goes on, and
    the transcripts, which copy the history, say the same; only the id makes two conversations of it.
    """
    shutil.copytree(EXAMPLE / user, inbox / user)
    bring_up_to_date(store, inbox)
    recovered = open_store(tmp_path / "recovered", monkeypatch)
    hide_transcripts(EXAMPLE / user, tmp_path / "hidden" / user, has_headers=False)
    bring_up_to_date(recovered, tmp_path / "hidden")
    assert min(same_agent(store, recovered, user, beginnings(EXAMPLE / user))) >= MIN_SAME_AGENT
    assert same_agent(store, recovered, user) == (precision, 1.0)


def test_nothing_of_the_headers_reaches_the_store(inbox, store):
    make_log(inbox / "ada" / "log.jsonl", loop(2))
    bring_up_to_date(store, inbox)
    text = repr([pl.read_parquet(path).rows() for path in store.root.rglob("*.parquet")])
    assert "harbour" in text
    assert "sk-ant" not in text
    assert "Bearer" not in text
