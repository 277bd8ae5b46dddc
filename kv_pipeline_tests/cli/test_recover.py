from __future__ import annotations

import json
import shutil

import polars as pl
import pytest

from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS
from kv_pipeline.store import Store
from kv_pipeline_tests.cli.commands import EXAMPLE
from kv_pipeline_tests.factories import growing_turns, write_database, write_transcript
from kv_pipeline_tests.recovery_truth import hide_transcripts, places, same_agent, tree

ANY_PREFIX = ("--min-prefix-tokens", "0")


def structures(store):
    known = Store.open(store).read(CONVERSATIONS, ["ada"]).filter(pl.col("n_requests") > 0)
    return sorted(known.select("structure", "n_requests").rows())


@pytest.fixture
def mixed(tmp_path):
    """One user with two conversations, of which one has a transcript."""
    rows = [*growing_turns("a", 3), *growing_turns("b", 2, at_s=10)]
    write_database(tmp_path / "inbox" / "ada" / "r.db", rows)
    write_transcript(tmp_path / "inbox" / "ada", "s", [("a-0", 0), ("a-1", 60)])
    return tmp_path / "inbox"


def test_a_run_leaves_what_no_transcript_names_and_recover_takes_it(mixed, tmp_path, command):
    store = tmp_path / "store"
    command("run", "--inbox", mixed, "--store", store)
    assert structures(store) == [("transcripts", 2)]
    done = command("recover", "--inbox", mixed, "--store", store, *ANY_PREFIX, "--json")
    assert done.code == 0
    assert [row["n_requests"] for row in done.json["recovered_conversations"]] == [2]
    assert structures(store) == [("content", 2), ("transcripts", 2)]
    command("run", "--inbox", mixed, "--store", store)  # goes on with that
    assert structures(store) == [("content", 2), ("transcripts", 2)]
    command("recover", "--inbox", mixed, "--store", store, "--automatic")
    assert structures(store) == [("transcripts", 2)]


def test_what_transcripts_cover_can_be_recovered_too(mixed, tmp_path, command):
    command("recover", "--inbox", mixed, "--store", tmp_path / "store", *ANY_PREFIX, "--include-indexed")
    assert structures(tmp_path / "store") == [("content", 2), ("content", 3)]


def test_other_clients_are_left_out_and_counted(mixed, tmp_path, command):
    done = command("recover", "--inbox", mixed, "--store", tmp_path / "store", "--json")
    assert (done.code, done.json["recovered_conversations"]) == (0, [])
    assert [(n["reason"], n["found"][:15]) for n in done.json["notices"][1:]] == [("short_prefix", "1 conversations")]


@pytest.mark.parametrize("user", ["ada", "linus", "grace"])
def test_written_transcripts_say_what_was_recovered(tmp_path, command, user):
    hide_transcripts(EXAMPLE / user, tmp_path / "inbox" / user)
    first, out = tmp_path / "first", tmp_path / "out"
    done = command("recover", "--inbox", tmp_path / "inbox", "--store", first, *ANY_PREFIX, "--write-transcripts", out)
    assert (done.code, "transcripts written" in done.out) == (0, True)
    shutil.copytree(out / user, tmp_path / "inbox" / user, dirs_exist_ok=True)
    command("run", "--inbox", tmp_path / "inbox", "--store", tmp_path / "second")
    recovered, read = Store.open(first), Store.open(tmp_path / "second")
    assert set(read.read(CONVERSATIONS, [user])["structure"]) == {"transcripts"}
    assert same_agent(recovered, read, user) == (1.0, 1.0)
    assert tree(recovered, user) == tree(read, user)
    assert places(recovered, user) == places(read, user)
    ids = ["conversation_id", "agent_id", "billed_row_id"]
    before, after = (store.read(CONVERSATION_REQUESTS, [user]).select(ids) for store in (recovered, read))
    assert before.equals(after)
    assert recovered.read(AGENTS, [user])["subagent_type"].equals(read.read(AGENTS, [user])["subagent_type"])


def test_written_transcripts_hold_no_content(tmp_path, command):
    hide_transcripts(EXAMPLE / "ada", tmp_path / "inbox" / "ada")
    out = tmp_path / "out"
    command(
        "recover", "--inbox", tmp_path / "inbox", "--store", tmp_path / "s", *ANY_PREFIX, "--write-transcripts", out
    )
    records = [json.loads(line) for path in out.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(records) == 22 + 1  # answers and a compaction
    assert all(record.get("message", {}).get("content", []) == [] for record in records)


def test_workers_change_nothing(mixed, tmp_path, command, monkeypatch):
    monkeypatch.setattr("kv_pipeline.steps.recovered_content._CHUNK_MESSAGES", 2)
    monkeypatch.setenv("KV_PIPELINE_SALT", "the same")
    for name, workers in (("one", 1), ("two", 2)):
        command("recover", "--inbox", mixed, "--store", tmp_path / name, *ANY_PREFIX, "--workers", workers)
    one, two = (Store.open(tmp_path / name).path(AGENTS.name, "ada").read_bytes() for name in ("one", "two"))
    assert one == two
    assert structures(tmp_path / "two") == [("content", 2), ("transcripts", 2)]


def test_a_wrong_path_makes_no_store(tmp_path, command):
    assert command("recover", tmp_path / "no.db", "--store", tmp_path / "store").code == 2
    assert not (tmp_path / "store").exists()
