"""Recordings that grow, are vacuumed, rotated, copied and repeated by other recorders: each request counts once."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS, SKIPPED_INPUT
from kv_pipeline.steps.index import transcripts_partition
from kv_pipeline.store import Store
from kv_pipeline_tests.factories import (
    bring_up_to_date,
    growing_turns,
    open_store,
    write_database,
    write_transcript,
)
from kv_pipeline_tests.sources.factories import make_database, make_entry, make_har, make_log, make_pair, make_rows
from kv_pipeline_tests.sources.writers import KEEP_WRITING_WAL, running_writer


def messages(store: Store) -> dict[str, str]:
    """Message to the recording whose row counts."""
    return dict(store.read(CONVERSATION_REQUESTS, ["ada"]).select("message_id", "database_id").rows())


def reasons(store: Store) -> dict[str, int]:
    return dict(store.read(UNINDEXED_REQUESTS, ["ada"])["reason"].value_counts().iter_rows())


def names(store: Store) -> list[str]:
    return store.read(CONVERSATIONS, ["ada"]).filter(pl.col("n_requests") > 0)["conversation_id"].to_list()


def execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def blocks(store: Store) -> list[pl.DataFrame]:
    """Content of all conversations, without the rows' places."""
    keys = store.partitions(TOKENIZED_BLOCKS.name)
    return [store.read(TOKENIZED_BLOCKS, [key]) for key in keys] + [store.read(TRACES, [key]) for key in keys]


def test_a_vacuumed_database_gives_other_row_ids_and_the_same_conversations(inbox, store):
    """Without an integer primary key VACUUM numbers the rows anew, here after old ones were deleted."""
    database = write_database(inbox / "ada" / "r.db", [*growing_turns("old", 2, -900), *growing_turns("a", 3)])
    bring_up_to_date(store, inbox)
    before = names(store)
    assert len(before) == 2
    execute(database, "DELETE FROM requests WHERE id LIKE 'r-old%'")
    bring_up_to_date(store, inbox)
    (kept,) = names(store)
    assert kept in before
    rows = store.read(RAW_REQUESTS, ["ada/r"])["row_id"].to_list()
    made = blocks(store)
    execute(database, "VACUUM")
    bring_up_to_date(store, inbox)
    assert rows == [3, 4, 5]
    assert store.read(RAW_REQUESTS, ["ada/r"])["row_id"].to_list() == [1, 2, 3]
    assert names(store) == [kept]
    assert [frame.equals(again) for frame, again in zip(made, blocks(store), strict=True)] == [True, True]
    assert store.read(SKIPPED_INPUT, ["ada/r"]).is_empty()


def test_a_database_that_is_being_written_grows_by_whole_requests(inbox, store):
    (inbox / "ada").mkdir(parents=True)
    database = make_database(inbox / "ada" / "r.db", [])
    with running_writer(KEEP_WRITING_WAL, database):
        seen = []
        for _ in range(3):
            bring_up_to_date(store, inbox)
            seen.append(store.read(RAW_REQUESTS, ["ada/r"])["row_id"].to_list())
    bring_up_to_date(store, inbox)
    seen.append(store.read(RAW_REQUESTS, ["ada/r"])["row_id"].to_list())
    assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(seen))
    assert len(seen[-1]) > 0
    assert store.read(RAW_REQUESTS, ["ada/r"])["request_id"].is_unique().all()


def test_a_rotated_database_continues_its_conversations(inbox, store, tmp_path, monkeypatch):
    rows = growing_turns("a", 4)
    database = write_database(inbox / "ada" / "requests.db", rows[:2])
    bring_up_to_date(store, inbox)
    (name,) = names(store)
    database.rename(inbox / "ada" / "requests-1.db")
    write_database(inbox / "ada" / "requests.db", rows[2:])
    bring_up_to_date(store, inbox)
    assert names(store) == [name]
    assert set(messages(store).values()) == {"ada/requests", "ada/requests-1"}
    assert reasons(store) == {}
    at_once = open_store(tmp_path / "at once", monkeypatch)
    bring_up_to_date(at_once, inbox)
    assert all(frame.equals(other) for frame, other in zip(blocks(store), blocks(at_once), strict=True))


def test_rotation_by_copy_and_deletion_counts_each_request_once(inbox, store):
    rows = growing_turns("a", 4)
    write_database(inbox / "ada" / "b.db", rows)
    write_database(inbox / "ada" / "a.db", rows[:3])
    bring_up_to_date(store, inbox)
    assert len(messages(store)) == 4
    assert reasons(store) == {"duplicate": 3}
    assert store.read(SKIPPED_INPUT, [transcripts_partition("ada")])["reason"].to_list() == ["copied_rows"]


def test_transcripts_of_one_session_on_several_machines_count_once(inbox, store):
    """The laptop has the beginning, the server all but the first answer: partial copies of one session."""
    write_database(inbox / "ada" / "r.db", growing_turns("a", 4))
    for machine, kept in (("laptop", range(2)), ("server", range(1, 4))):
        made = write_transcript(inbox / "ada", "s", [(f"a-{n}", 60 * n) for n in kept])
        target = inbox / "ada" / "projects" / machine / "s.jsonl"
        target.parent.mkdir(parents=True)
        made.rename(target)
    bring_up_to_date(store, inbox)
    known = store.read(CONVERSATIONS, ["ada"]).row(0, named=True)
    assert (known["n_requests"], known["n_transcript_answers"], known["match_rate"]) == (4, 4, 1.0)
    assert store.read(CONVERSATION_REQUESTS, ["ada"])["agent_request_index"].to_list() == [0, 1, 2, 3]


def recorded_thrice(inbox: Path) -> None:
    """Three turns, the second of which all recorders have, the others one each."""
    sent: list[dict[str, Any]] = [{"role": "user", "content": "Where is the harbour?"}]
    bodies = []
    for n in range(3):
        bodies.append({"messages": list(sent), "tools": [{"name": "Read"}]})
        sent += [{"role": "assistant", "content": f"{n}: there."}, {"role": "user", "content": f"And {n}?"}]
    pair, entry = make_pair(bodies[1], "m1"), make_entry(bodies[1], "m1")
    make_log(inbox / "ada" / "x.jsonl", [pair, _later(make_pair(bodies[2], "m2"), 20)])
    make_har(inbox / "ada" / "x.har", [entry])
    rows = make_rows(2)
    for row, n, second in zip(rows, (0, 1), ("04", "24"), strict=True):
        answer = json.loads(row["response"])
        answer["body"]["id"] = f"m{n}"
        body = json.loads(row["body"]) | bodies[n]
        row |= {"timestamp": f"2025-05-29T21:38:{second}Z", "body": json.dumps(body), "response": json.dumps(answer)}
    make_database(inbox / "ada" / "x.db", rows)


def _later(pair: dict[str, Any], seconds: float) -> dict[str, Any]:
    pair["request"]["timestamp"] += seconds
    pair["response"]["timestamp"] += seconds
    return pair


@pytest.mark.parametrize("has_transcript", [True, False])
def test_a_request_that_several_recorders_saw_counts_once(inbox, store, has_transcript):
    """The log and the database have two turns each, the HAR file one: the log's times and bodies are more exact."""
    recorded_thrice(inbox)
    if has_transcript:
        write_transcript(inbox / "ada", "s", [("m0", 0), ("m1", 20), ("m2", 40)])
    bring_up_to_date(store, inbox)
    assert messages(store)["m1"] == "ada/x.jsonl"
    assert reasons(store) == {"duplicate": 2}


def test_the_recorder_with_most_of_a_conversation_counts(inbox, store):
    """Others may spell bodies differently, and a prefix ends where spelling changes."""
    rows = growing_turns("a", 3)
    write_database(inbox / "ada" / "x.db", rows)
    body = json.loads(rows[1][4])
    make_har(inbox / "ada" / "x.har", [make_entry(body, "a-1")])
    write_transcript(inbox / "ada", "s", [(f"a-{n}", 60 * n) for n in range(3)])
    bring_up_to_date(store, inbox)
    assert messages(store) == dict.fromkeys(["a-0", "a-1", "a-2"], "ada/x")
