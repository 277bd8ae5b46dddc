"""Any requests through a database file and all steps: the same blocks as the oracle's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.landing import DatabaseFile
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS
from kv_pipeline.schemas.conversations import CONVERSATIONS
from kv_pipeline.schemas.requests import RAW_REQUESTS, SEGMENTS, SKIPPED_INPUT
from kv_pipeline.steps.conversations import user_requests
from kv_pipeline.steps.databases import ingest_database
from kv_pipeline.steps.segments import load_segments
from kv_pipeline_tests import strategies as some
from kv_pipeline_tests.comparison import assert_user_as_defined
from kv_pipeline_tests.factories import (
    bring_up_to_date,
    growing_turns,
    open_store,
    recorded,
    user_message,
    write_database,
    write_transcript,
)
from kv_pipeline_tests.sources.factories import make_log, make_pair

FILLER = user_message("The harbour master wrote it all down. " * 300)
"""Longer than what a body must have for its repetitions to be looked for."""
USAGE = {"cache_read_input_tokens": 3}


def ordinary(message):
    """What the naive trace builder understands: its messages have a content of typed blocks."""
    content = message.get("content") if isinstance(message, dict) else None
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return isinstance(blocks, list) and all(isinstance(b, dict) and isinstance(b.get("type"), str) for b in blocks)


MESSAGES = some.messages.filter(lambda message: ordinary(message) and message.get("role", "") != "\ud800")


@st.composite
def conversations(draw):
    pool = [FILLER, *draw(st.lists(MESSAGES, min_size=1, max_size=4))]
    lists = [[FILLER]]
    for _ in range(draw(st.integers(1, 5))):
        before = draw(st.sampled_from(lists))
        kept = before[: draw(st.integers(1, len(before)))]
        lists.append([*kept, *draw(st.lists(st.sampled_from(pool), max_size=2))])
    return lists


@settings(max_examples=25)
@given(conversations(), some.system_versions)
def test_any_requests(lists, systems):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        inbox = Path(folder) / "inbox"
        rows = [
            recorded(f"m{n}", n, messages=messages, system=systems[n % len(systems)], stream=True, usage=USAGE)
            for n, messages in enumerate(lists)
        ]
        write_database(inbox / "ada" / "r.db", rows)
        write_transcript(inbox / "ada", "s", [(f"m{n}", n) for n in range(len(lists))])
        store = open_store(Path(folder) / "store", patch, block_size=16)
        bring_up_to_date(store, inbox)
        assert store.read(SKIPPED_INPUT, store.partitions(SKIPPED_INPUT.name)).is_empty()
        assert assert_user_as_defined(store, inbox / "ada", Path(folder) / "out") == len(lists)


def test_content_is_kept_once(tmp_path, monkeypatch):
    inbox, store = tmp_path / "inbox", open_store(tmp_path / "store", monkeypatch)
    write_database(inbox / "ada" / "r.db", growing_turns("a", 20))
    write_transcript(inbox / "ada", "s", [(f"a-{n}", 60 * n) for n in range(20)])
    bring_up_to_date(store, inbox)
    segments = store.read(SEGMENTS, ["ada/r"])
    assert segments["kind"].value_counts().sort("kind").rows() == [("message", 39), ("system", 1), ("tools", 1)]
    assert segments["text"].is_unique().all()


def test_a_segment_in_two_databases_is_one(tmp_path, monkeypatch):
    inbox, store = tmp_path / "inbox", open_store(tmp_path / "store", monkeypatch)
    first, second = growing_turns("a", 2)
    write_database(inbox / "ada" / "1.db", [first])
    write_database(inbox / "ada" / "2.db", [second])
    write_transcript(inbox / "ada", "s", [("a-0", 0), ("a-1", 60)])
    bring_up_to_date(store, inbox)
    loaded = load_segments(store, user_requests(store, "ada", ["ada/s"]))
    assert sorted(loaded.numbers) == ["ada/1", "ada/2"]
    assert len(loaded.contents) == 5, "tools, system and three messages"


def test_only_segments_hold_content(tmp_path, monkeypatch):
    inbox, store = tmp_path / "inbox", open_store(tmp_path / "store", monkeypatch)
    write_database(inbox / "ada" / "r.db", growing_turns("a", 2))
    write_transcript(inbox / "ada", "s", [("a-0", 0), ("a-1", 60)])
    bring_up_to_date(store, inbox)
    for path in store.root.rglob("*"):
        if path.suffix == ".parquet":
            text = json.dumps(pl.read_parquet(path).rows(), default=str)
        else:
            text = path.read_bytes().decode("latin-1") if path.is_file() else ""
        assert ("harbour" in text) is (path.parent.parent.name == "segments")
        assert store.salt.hex() not in text


def test_a_file_that_became_unusable_keeps_what_was_read(tmp_path, monkeypatch):
    inbox, store = tmp_path / "inbox", open_store(tmp_path / "store", monkeypatch)
    database = write_database(inbox / "ada" / "r.db", growing_turns("a", 2))
    write_transcript(inbox / "ada", "s", [("a-0", 0), ("a-1", 60)])
    bring_up_to_date(store, inbox)
    database.write_bytes(b"no database any more")
    assert bring_up_to_date(store, inbox)["conversations"] == []
    assert store.read(RAW_REQUESTS, ["ada/r"]).height == 2
    assert store.read(SKIPPED_INPUT, ["ada/r"])["reason"].to_list() == ["not_a_database", "earlier_rows_kept"]


def test_damage_in_one_row_is_counted(tmp_path, monkeypatch):
    inbox, store = tmp_path / "inbox", open_store(tmp_path / "store", monkeypatch)
    broken = ("r-x", "not a time", "/v1/messages", "m", '{"messages": []}', None)
    write_database(inbox / "ada" / "r.db", [broken, *growing_turns("a", 2)])
    write_transcript(inbox / "ada", "s", [("a-0", 0), ("a-1", 60)])
    bring_up_to_date(store, inbox)
    assert store.read(SKIPPED_INPUT, ["ada/r"]).select("row", "reason", "is_left_out").rows() == [
        (1, "bad_timestamp", True)
    ]
    assert store.read(CONVERSATIONS, ["ada"])["n_requests"].to_list() == [2]


@pytest.mark.parametrize("keep", [False, True])
def test_billing_headers(tmp_path, monkeypatch, keep):
    inbox = tmp_path / "inbox"
    store = open_store(tmp_path / "store", monkeypatch, keep_billing_header=keep, block_size=8)
    header = "x-anthropic-billing-header: cc_version=2.1; cch={}; rest of the header that goes on for a while"
    rows = [recorded(f"m{n}", n, system=[{"type": "text", "text": header.format(f"a{n}b")}]) for n in range(2)]
    write_database(inbox / "ada" / "r.db", rows)
    write_transcript(inbox / "ada", "s", [("m0", 0), ("m1", 1)])
    bring_up_to_date(store, inbox)
    assert store.read(RAW_REQUESTS, ["ada/r"])["billing_header_id"].n_unique() == 2
    blocks = store.read(TOKENIZED_BLOCKS, ["ada/s"])
    assert (blocks["shared_blocks"][1] == blocks["n_blocks"][1]) is not keep


@pytest.mark.parametrize("kind", ["type", "role"])
def test_odd_types_and_roles_do_not_stop_a_database(tmp_path, monkeypatch, kind):
    inbox, store = tmp_path / "inbox", open_store(tmp_path / "store", monkeypatch)
    odd = [{"role": "\ud800", "content": []}, {"role": "user", "content": [{"type": ["x"]}, {"type": "\ud800"}]}]
    write_database(inbox / "ada" / "r.db", [recorded("m0", messages=[odd[kind == "type"]])])
    write_transcript(inbox / "ada", "s", [("m0", 0)])
    bring_up_to_date(store, inbox)
    assert store.partitions("traces") == ["ada/s"]


def test_a_log_that_was_cut_off_or_damaged_leaves_what_was_read_before(tmp_path, monkeypatch):
    store, path = open_store(tmp_path / "store", monkeypatch), tmp_path / "log.jsonl"
    pairs = [make_pair(message_id=f"m{n}") for n in range(3)]

    def ingested(*lines: object) -> tuple[list[str], list[str]]:
        make_log(path, lines)
        content = ingest_database(store, DatabaseFile("ada/log.jsonl", "ada", path, "", "claude_trace"))
        kept = store.read(RAW_REQUESTS, ["ada/log.jsonl"])["message_id"].to_list()
        return kept, [skip.reason for skip in content.skips]

    assert ingested(*pairs) == (["m0", "m1", "m2"], [])
    cut = json.dumps(pairs[1]).encode()[:-30]
    assert ingested(pairs[0], cut) == (["m0", "m1", "m2"], ["unfinished_line", "earlier_rows_kept"])
    assert ingested(pairs[0], "x", pairs[2]) == (["m0", "m1", "m2"], ["broken_line", "earlier_rows_kept"])
    assert ingested(*pairs, make_pair(message_id="m3"), cut) == (["m0", "m1", "m2", "m3"], ["unfinished_line"])
    assert ingested() == (["m0", "m1", "m2", "m3"], ["empty_file", "earlier_rows_kept"])
    assert ingested(pairs[0]) == (["m0"], [])
