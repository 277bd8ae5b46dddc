from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing

from kv_pipeline_tests.demo.rows import all_rows, databases, events, rows

SCHEMA = {
    "requests": [
        ("id", "TEXT", 0, None, 1),
        ("timestamp", "DATETIME", 0, "CURRENT_TIMESTAMP", 0),
        ("method", "TEXT", 1, None, 0),
        ("endpoint", "TEXT", 1, None, 0),
        ("headers", "TEXT", 1, None, 0),
        ("body", "TEXT", 1, None, 0),
        ("user_agent", "TEXT", 0, None, 0),
        ("content_type", "TEXT", 0, None, 0),
        ("prompt_grade", "TEXT", 0, None, 0),
        ("response", "TEXT", 0, None, 0),
        ("model", "TEXT", 0, None, 0),
        ("original_model", "TEXT", 0, None, 0),
        ("routed_model", "TEXT", 0, None, 0),
        ("created_at", "DATETIME", 0, "CURRENT_TIMESTAMP", 0),
    ]
}
INDEXES = {"idx_timestamp": ["timestamp"], "idx_endpoint": ["endpoint"], "idx_model": ["model"]}


def twins(path) -> dict[str, list[dict]]:
    """Rows of a database by what they ask, whether or not they stream.

    Warm-ups are left out: those of different conversations ask exactly the same.
    """
    groups = defaultdict(list)
    for row in rows(path):
        body = json.loads(row["body"])
        if "Warmup" in row["body"]:
            continue
        asked = {name: body.get(name) for name in ("model", "messages", "system", "tools")}
        groups[json.dumps(asked)].append(row)
    return groups


def test_schema_is_the_proxys(landing):
    for path in databases(landing.root):
        with closing(sqlite3.connect(path)) as connection:
            columns = connection.execute("PRAGMA table_info(requests)").fetchall()
            assert [tuple(column[1:]) for column in columns] == SCHEMA["requests"]
            found = {
                name: [column[2] for column in connection.execute(f"PRAGMA index_info({name})")]
                for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE INDEX%'")
            }
            assert found == INDEXES
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_nothing_but_databases_lies_beside_them(landing):
    assert {path.suffix for path in landing.root.glob("*/*") if path.is_file()} == {".db"}


def test_bodies_keep_the_proxys_key_order(landing):
    order = ["model", "messages", "max_tokens", "temperature", "system", "stream", "tools"]
    for row in all_rows(landing.root):
        keys = list(json.loads(row["body"]))
        assert keys == [name for name in order if name in keys]


def test_message_content_keys_are_sorted_and_html_is_escaped(landing):
    for row in all_rows(landing.root):
        assert not set("<>&") & set(row["body"] + row["response"] + row["headers"])
        for message in json.loads(row["body"])["messages"]:
            for block in message["content"] if isinstance(message["content"], list) else []:
                assert list(block) == sorted(block)


def test_special_texts_are_present(landing):
    text = "".join(
        json.dumps(json.loads(row["body"])["messages"], ensure_ascii=False) for row in all_rows(landing.root)
    )
    for needle in ("<|endoftext|>", "港", '"type": "image"', '"role": "system", "content": []'):
        assert needle in text


def test_billing_header_changes_only_where_it_may(landing):
    fields = defaultdict(set)
    for path in databases(landing.root):
        for row in rows(path) if path.parent.name != "linus" else []:
            text = json.loads(row["body"])["system"][0]["text"]
            assert text.startswith("x-anthropic-billing-header: ")
            for field in text.split(": ", 1)[1].rstrip(";").split("; "):
                name, value = field.split("=")
                fields[name].add(value)
    assert set(fields) == {
        "cc_version",
        "cc_entrypoint",
        "cch",
        "cc_is_subagent",
        "cc_prev_req",
        "cc_prompt_id",
    }
    assert {name: {len(value) for value in fields[name]} for name in ("cch", "cc_prev_req", "cc_prompt_id")} == {
        "cch": {5},
        "cc_prev_req": {28},
        "cc_prompt_id": {36},
    }
    assert len(fields["cch"]) > 30 > len(fields["cc_version"])


def test_every_older_turn_is_streamed_then_replayed(landing):
    groups = twins(landing.root / "linus" / "requests.db").values()
    for first, *replays in groups:
        assert json.loads(first["body"])["stream"] is True
        assert json.loads(first["response"])["body"]["stop_reason"] == ""
        assert replays
        for replay in replays:
            body, response = json.loads(replay["body"]), json.loads(replay["response"])
            assert (body["temperature"], "stream" in body, response["isStreaming"]) == (1, False, False)
            assert response["body"]["usage"]["cache_creation_input_tokens"] == 0
    assert sorted(len(group) for group in groups)[-2:] == [3, 3]
    warmups = sum(agent.kind == "Warmup" for c in landing.truth.conversations for agent in c.agents)
    assert sum(len(group) - 1 for group in groups) == landing.truth.unindexed["replay_twin"] - warmups


def test_the_stream_of_an_older_turn_pays_for_the_cache(landing):
    written = 0
    for first, *_ in twins(landing.root / "linus" / "requests.db").values():
        written += events(json.loads(first["response"]))[0]["message"]["usage"]["cache_creation_input_tokens"]
    assert written > 10_000


def test_one_stream_breaks_off(landing):
    broken = []
    for row in all_rows(landing.root):
        response = json.loads(row["response"])
        if response["isStreaming"] and response["statusCode"] == 200:
            kinds = [event["type"] for event in events(response)]
            assert kinds[0] == "message_start"
            if kinds[-1] != "message_stop":
                broken.append(kinds)
    assert broken == [["message_start", "ping", "content_block_start", "content_block_delta"]]


def test_resting_longer_than_the_lifetime_loses_the_cache(landing):
    reads = []
    for row in rows(landing.root / "grace" / "requests.db"):
        response = json.loads(row["response"])
        if response["statusCode"] == 200:
            reads.append(events(response)[0]["message"]["usage"]["cache_read_input_tokens"])
    assert [index for index, read in enumerate(reads) if read == 0] == [
        0,
        9,
    ]  # the first, and after 70 minutes


def test_many_tool_calls_fall_out_of_the_look_back(landing):
    found = rows(landing.root / "grace" / "requests.db")
    many = next(row for row in found if len(json.loads(row["body"])["messages"][-1]["content"]) == 24)
    billed = events(json.loads(many["response"]))[0]["message"]["usage"]
    assert 1_024 < billed["cache_read_input_tokens"] < billed["cache_creation_input_tokens"]


def test_fork_reads_its_parents_prefix(landing):
    fork = next(agent for c in landing.truth.conversations for agent in c.agents if agent.kind == "fork")
    for row in rows(landing.root / "ada" / "requests-1.db"):
        if json.loads(row["headers"]).get("X-Claude-Code-Agent-Id") == [fork.agent_id]:
            billed = events(json.loads(row["response"]))[0]["message"]["usage"]
            assert billed["cache_read_input_tokens"] > 4 * billed["cache_creation_input_tokens"]
            return
    raise AssertionError("no request of the fork")
