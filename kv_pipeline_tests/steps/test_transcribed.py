"""Requests of answers that no recording holds, from landing folder to traces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.schemas.requests import RAW_REQUESTS, SEGMENTS
from kv_pipeline.store import Store
from kv_pipeline_tests import oracle_traces
from kv_pipeline_tests.factories import bring_up_to_date, growing_turns, open_store, recorded, write_database
from kv_pipeline_tests.sources.transcript_requests.script import Script, call, result, text
from kv_pipeline_tests.sources.transcript_requests.test_recorded import recorded as recorded_script
from kv_pipeline_tests.test_end_to_end import assert_same_as_rebuilt, contents

EXAMPLE = Path("data/example").resolve()
PARTITION = "ada/~transcripts"


def loop(name: str, n: int, session: str = "s1") -> Script:
    """An agent loop whose answers are `<name>-0`, `<name>-1` …"""
    script = Script(session_id=session)
    script.user(f"{name} begins")
    for number in range(n):
        script.answer(f"{name}-{number}", [call(f"{name}{number}")], 4000 + 200 * number)
        script.user([result(f"{name}{number}", "some lines " * 60)])
    return script


def put(inbox: Path, *scripts: Script) -> None:
    for script in scripts:
        script.write(inbox / "ada" / "projects" / "p")


def known(store: Store) -> dict[str, dict[str, Any]]:
    return {row["session_id"]: row for row in store.read(CONVERSATIONS, ["ada"]).to_dicts()}


def sources(store: Store) -> dict[str, tuple[str, str]]:
    """Message to the partition that its request is in, and how exact it is."""
    requests = store.read(CONVERSATION_REQUESTS, ["ada"]).select("message_id", "database_id", row_id="billed_row_id")
    raw = store.read(RAW_REQUESTS, ["ada/requests", PARTITION]).select("database_id", "row_id", "exactness")
    rows = requests.join(raw, on=["database_id", "row_id"]).select("message_id", "database_id", "exactness").rows()
    return {message: (database, exactness) for message, database, exactness in rows}


def test_transcripts_alone_give_traces(store, inbox):
    put(inbox, loop("a", 4))
    assert bring_up_to_date(store, inbox) == {"databases": [], "users": ["ada"], "conversations": ["ada/s1"]}
    assert set(sources(store).values()) == {(PARTITION, "approximate")}
    found = known(store)["s1"]
    assert (found["n_requests"], found["n_approximate"], found["n_rebuilt"], found["match_rate"]) == (4, 4, 0, 1.0)
    traces = store.read(TRACES, ["ada/s1"])
    assert traces["exactness"].to_list() == ["approximate"] * 4
    assert traces["input_types"].to_list() == [["text"], *[["tool_result"]] * 3]
    assert (traces["estimated_tokens"] > 3000).all()
    blocks = store.read(TOKENIZED_BLOCKS, ["ada/s1"])
    assert (blocks["agent_shared_blocks"][1:] >= blocks["n_blocks"][:-1] - 1).all()
    assert store.read(VALIDATION_REPORT, ["ada/s1"]).height == 4 * 2 * 3
    report = store.read(CACHE_REPORT, ["ada"])
    assert (report.filter(pl.col("request_index") > 0)["predicted_read_tokens"] > 3000).all()


def test_recorded_requests_are_rebuilt(store, inbox):
    put(inbox, recorded_script())
    bring_up_to_date(store, inbox)
    assert sources(store) == {"m1": (PARTITION, "rebuilt"), "m2": (PARTITION, "rebuilt")}
    assert (known(store)["s1"]["n_rebuilt"], known(store)["s1"]["n_approximate"]) == (2, 0)
    assert store.read(TRACES, ["ada/s1"])["estimated_tokens"].to_list() == [0, 0]


def test_nothing_is_made_where_a_database_has_all(store, inbox):
    put(inbox, loop("a", 2))
    write_database(inbox / "ada" / "requests.db", growing_turns("a", 2))
    bring_up_to_date(store, inbox)
    assert set(sources(store).values()) == {("ada/requests", "recorded")}
    assert [path for path in store.root.rglob("*transcripts*") if path.suffix == ".parquet" and "~" in path.name] == []


def test_an_answer_that_a_proxy_saw_breaking_off_stays_with_the_proxy(store, inbox):
    """Its row is no success, but it is what was recorded."""
    put(inbox, loop("a", 2))
    rows = growing_turns("a", 2)
    answer = json.loads(rows[1][-1])
    start = {"type": "message_start", "message": {"id": "a-1", "usage": {"input_tokens": 5}}}
    broken = {**answer, "body": {}, "streamingChunks": [f"data: {json.dumps(start)}"]}
    write_database(inbox / "ada" / "requests.db", [rows[0], (*rows[1][:-1], json.dumps(broken))])
    bring_up_to_date(store, inbox)
    assert sources(store) == {"a-0": ("ada/requests", "recorded")}


def test_a_session_of_which_a_database_has_a_part_gets_only_what_is_verified(store, inbox):
    script = recorded_script()
    script.user("and more")
    script.answer("m3", [text("hi")])
    put(inbox, script)
    write_database(inbox / "ada" / "requests.db", [recorded("m1")])
    bring_up_to_date(store, inbox)
    assert sources(store) == {"m1": ("ada/requests", "recorded"), "m2": (PARTITION, "rebuilt")}
    assert known(store)["s1"]["match_rate"] == pytest.approx(2 / 3)


def test_sessions_before_the_proxy_are_approximate_beside_recorded_ones(store, inbox):
    put(inbox, loop("a", 2), loop("b", 2, session="s2"))
    write_database(inbox / "ada" / "requests.db", growing_turns("b", 2))
    bring_up_to_date(store, inbox)
    assert {message: exactness for message, (_, exactness) in sources(store).items()} == {
        "a-0": "approximate", "a-1": "approximate", "b-0": "recorded", "b-1": "recorded",
    }  # fmt: skip


def test_a_database_that_comes_later_wins(store, inbox, tmp_path, monkeypatch):
    put(inbox, loop("a", 3))
    bring_up_to_date(store, inbox)
    write_database(inbox / "ada" / "requests.db", growing_turns("a", 3))
    bring_up_to_date(store, inbox)
    assert set(sources(store).values()) == {("ada/requests", "recorded")}
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_a_transcript_that_grows_is_read_again_and_only_it_is_made_again(store, inbox, tmp_path, monkeypatch):
    put(inbox, loop("a", 3), loop("b", 3, session="s2"))
    bring_up_to_date(store, inbox)
    assert bring_up_to_date(store, inbox) == {"databases": [], "users": [], "conversations": []}
    put(inbox, loop("a", 5))
    assert bring_up_to_date(store, inbox)["conversations"] == ["ada/s1"]
    assert known(store)["s1"]["n_requests"] == 5
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_transcripts_that_the_client_deletes_keep_their_requests(store, inbox):
    put(inbox, loop("a", 3), loop("b", 3, session="s2"))
    bring_up_to_date(store, inbox)
    paths = [store.path(table.name, "ada/s1") for table in (TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT)]
    before = [path.read_bytes() for path in paths]
    (inbox / "ada" / "projects" / "p" / "s1.jsonl").unlink()
    put(inbox, loop("b", 4, session="s2"), loop("c", 2, session="s3"))
    assert bring_up_to_date(store, inbox)["conversations"] == ["ada/s2", "ada/s3"]
    assert [path.read_bytes() for path in paths] == before
    assert sorted(known(store)) == ["s1", "s2", "s3"]
    for path in paths:
        path.unlink()
    assert bring_up_to_date(store, inbox)["conversations"] == ["ada/s1"]
    assert [path.read_bytes() for path in paths] == before
    segments = store.read(SEGMENTS, [PARTITION])
    assert segments["segment_index"].to_list() == list(range(segments.height))


def test_lost_tables_are_made_again(store, inbox, tmp_path, monkeypatch):
    put(inbox, loop("a", 3))
    bring_up_to_date(store, inbox)
    store.path(SEGMENTS.name, PARTITION).unlink()
    assert bring_up_to_date(store, inbox)["users"] == ["ada"]
    assert_same_as_rebuilt(store, inbox, tmp_path, monkeypatch)


def test_a_resumed_session_counts_each_answer_once(store, inbox):
    first = loop("a", 3)
    resumed = Script(session_id="s2")
    resumed.records = [
        {**record, "uuid": "c" + record["uuid"], "parentUuid": record["parentUuid"] and "c" + record["parentUuid"],
         "sessionId": "s2"}
        for record in first.records
    ]  # fmt: skip
    resumed.n, resumed.last = first.n, resumed.records[-1]["uuid"]
    resumed.answer("b-0", [text("on it goes")])
    put(inbox, first, resumed)
    bring_up_to_date(store, inbox)
    assert {name: row["n_requests"] for name, row in known(store).items()} == {"s1": 3, "s2": 1}
    (request,) = store.read(TRACES, ["ada/s2"])["input_tokens"].to_list()
    assert request > store.read(TRACES, ["ada/s1"])["input_tokens"].to_list()[-1]


def test_example_from_transcripts_alone_has_the_structure_of_the_exact_path(tmp_path, monkeypatch):
    exact, alone = (open_store(tmp_path / name, monkeypatch) for name in ("exact", "alone"))
    bring_up_to_date(exact, EXAMPLE)
    shutil.copytree(EXAMPLE, tmp_path / "inbox", ignore=shutil.ignore_patterns("*.db"))
    before = contents(tmp_path / "inbox")
    bring_up_to_date(alone, tmp_path / "inbox")
    assert contents(tmp_path / "inbox") == before
    columns = ["conversation_id", "agent_id", "agent_request_index", "turn_index", "message_id", "is_after_compaction"]
    users = ["ada", "grace", "linus"]
    structure = [made.read(CONVERSATION_REQUESTS, users).select(columns).sort(columns) for made in (exact, alone)]
    assert structure[0].equals(structure[1])
    assert exact.read(AGENTS, users).equals(alone.read(AGENTS, users))
    assert exact.partitions(TRACES.name) == alone.partitions(TRACES.name)
    assert answered(exact, users).equals(answered(alone, users))


def answered(store: Store, users: list[str]) -> pl.DataFrame:
    """What traces say of each answer."""
    place = ["conversation_id", "request_index"]
    messages = store.read(CONVERSATION_REQUESTS, users).select(*place, "message_id")
    traces = store.read(TRACES, store.partitions(TRACES.name))
    columns = ["message_id", "output_tokens", "output_types", "stop_reason"]
    return traces.join(messages, on=place).select(columns).sort("message_id")


def test_rebuilt_bodies_of_the_example_are_what_the_proxy_recorded(tmp_path, monkeypatch):
    """Less the billing header, which is no part of the records; all but the fork's are rebuilt."""
    alone = open_store(tmp_path / "alone", monkeypatch)
    shutil.copytree(EXAMPLE / "ada" / "projects", tmp_path / "inbox" / "ada" / "projects")
    bring_up_to_date(alone, tmp_path / "inbox")
    texts = dict(alone.read(SEGMENTS, [PARTITION]).select("segment_index", "text").iter_rows())
    turns = {turn.answer.message_id: turn for turn in oracle_traces.turns(EXAMPLE / "ada")}
    rows = alone.read(RAW_REQUESTS, [PARTITION])
    fork = alone.read(AGENTS, ["ada"]).filter("is_fork")["agent_id"].item()
    assert {turns[message].agent for message in rows.filter(exactness="approximate")["message_id"]} == {fork}
    rebuilt = rows.filter(exactness="rebuilt")
    columns = ("message_id", "tools_segment", "system_segment", "message_segments", "breakpoints")
    for message_id, tools, system, messages, marks in rebuilt.select(columns).iter_rows():
        body = turns[message_id].billed.body
        found = [json.loads(texts[index]) for index in (tools, *messages)]
        assert found == [unmarked(value) for value in (body["tools"], *body["messages"])]
        assert json.loads(texts[system]) == unmarked(body["system"][1:])
        assert len(marks) == json.dumps(body).count("cache_control")
    assert (rows.height, rebuilt.height) == (22, 20)


def unmarked(value: Any) -> Any:
    """JSON without what no segment keeps."""
    if isinstance(value, dict):
        value = {**value, "data": ""} if value.get("type") == "base64" else value
        return {key: unmarked(item) for key, item in value.items() if key not in ("cache_control", "signature")}
    return [unmarked(item) for item in value] if isinstance(value, list) else value
