"""One run over good and every kind of bad input: each is named, counted and left out, and the good is as without it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import polars as pl
import pytest

from kv_pipeline.defs.instance import open_instance
from kv_pipeline.landing import discover
from kv_pipeline.runner import Inputs, RunOutcome, bring_up_to_date
from kv_pipeline.schemas.conversations import CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.sources.claude_code_proxy import connection
from kv_pipeline.store import Store
from kv_pipeline_tests.cli.commands import EXAMPLE
from kv_pipeline_tests.sources.factories import (
    LOOSE_SCHEMA,
    MESSAGE,
    listing,
    make_body,
    make_database,
    make_entry,
    make_har,
    make_record,
    make_response,
    make_row,
    make_rows,
    make_transcript,
)
from kv_pipeline_tests.sources.writers import DIE_IN_TRANSACTION, DIE_WITH_WAL, LOCK, run_writer, running_writer

SALT = "the salt of this test"
RESULTS = ("tokenized_blocks", "traces", "validation_report")
BAD_ROWS = [
    ("no_body", {"body": None}),
    ("body_not_json", {"body": "upstream connect error or disconnect"}),
    ("body_not_json", {"body": make_body()[:-9]}),
    ("body_not_object", {"body": json.dumps(make_body())}),
    ("body_not_utf8", {"body": b'{"messages":["\xff"]}'}),
    ("body_too_deep", {"body": '{"messages":[' + "[" * 9999 + "]" * 9999 + "]}"}),
    ("no_messages", {"body": "{}"}),
    ("bad_timestamp", {"timestamp": "yesterday"}),
    ("bad_timestamp", {"timestamp": 12.5}),
    ("other_endpoint", {"endpoint": "/v1/messages/count_tokens"}),
    ("response_not_json", {"response": make_response()[:40]}),
    ("response_not_json", {"response": "overloaded"}),
]
ODD_MESSAGES: list[Any] = [
    {"role": "system", "content": "x"},
    {"role": "oracle", "content": [{"type": "prophecy"}, {"type": ["list"]}, 3]},
    None,
    "text",
    {"role": "user", "content": "\ud83d"},
    {"role": "user", "content": 10**400},
]


def add_bad_files(inbox: Path) -> None:
    """User mallory has every kind of damage in files of their own."""
    folder = inbox / "mallory"
    (folder / "projects").mkdir(parents=True)
    (folder / "not a database.db").write_text("id,timestamp\n")
    (folder / "empty.db").write_bytes(b"")
    os.mkfifo(folder / "pipe.db")
    (folder / "dangling.db").symlink_to("nowhere")
    make_database(folder / "no rows.db", [])
    for name, schema in (("no table", "CREATE TABLE t (a)"), ("no column", "CREATE TABLE requests (id, body)")):
        with closing(sqlite3.connect(folder / f"{name}.db")) as database:
            database.execute(schema)
    os.truncate(make_database(folder / "truncated.db", make_rows(40, 3000)), 60_000)
    run_writer(DIE_WITH_WAL, make_database(folder / "wal.db", make_rows(1)))
    run_writer(DIE_IN_TRANSACTION, make_database(folder / "journal.db", make_rows(1)))
    make_database(folder / "locked.db", make_rows(1))
    (folder / "not a har.har").write_text("{}")
    cut_off = make_har(folder / "cut off.har", [make_entry(message_id="har 1"), "7", make_entry(message_id="har 2")])
    os.truncate(cut_off, cut_off.stat().st_size - 200)
    rows = [make_row(id=f"bad{n}", **changes) for n, (_, changes) in enumerate(BAD_ROWS)]
    odd = make_row(id="odd", body=make_body(messages=[MESSAGE, *ODD_MESSAGES]), response=make_response("msg_odd"))
    plain = make_row(id="plain", body=make_body(messages=[]), response=make_response("msg_plain"))
    make_database(folder / "rows.db", [*rows, odd, plain, odd | {"timestamp": "2024-01-01"}], schema=LOOSE_SCHEMA)
    answers = [make_record(message={"id": message_id}) for message_id in ("msg_odd", "msg_plain", "msg_unknown")]
    make_transcript(folder / "projects" / "p" / "s1.jsonl", [
        answers[0], "Traceback", answers[1] | {"isSidechain": "no"}, answers[1], answers[2], make_record(message={}),
        json.dumps(make_record()).encode()[:50],
    ])  # fmt: skip


def add_odd_names(inbox: Path) -> None:
    folder = inbox / "a..b ü\n\x1b[31m"
    for name in ("..x.db", "a?b#%20.db", ".tmp-1-x.db"):
        (folder / "sub dir").mkdir(parents=True, exist_ok=True)
        make_database(folder / "sub dir" / name, [make_row(id=name, response=make_response(f"msg {name}"))])
    make_transcript(folder / "projects" / "..." / "...jsonl", [make_record(message={"id": "msg ..x.db"}), "broken"])
    make_database(folder / os.fsdecode(b"\xff.db"), [make_row(id="no name")])
    climber = make_record(message={"id": "msg a?b#%20.db"}, sessionId="../../../climbed")
    make_transcript(folder / "projects" / "agent-1.jsonl", [climber])


def add_copies_and_links(inbox: Path) -> None:
    shutil.copy(inbox / "ada" / "requests.db", inbox / "ada" / "same again.db")
    (inbox / "linus" / "loop").symlink_to(inbox / "linus")
    (inbox / "elsewhere.db").write_text("")
    outside = inbox.parent / "outside"
    shutil.move(inbox / "grace" / "projects", outside)
    (inbox / "grace" / "projects").symlink_to(outside)


class Mixed(NamedTuple):
    """The outcome of one run over everything."""

    inbox: Path
    store: Store
    outcome: RunOutcome
    good: Store
    before: dict[str, Any]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    root = tmp_path_factory.mktemp("mixed")
    inbox = root / "inbox"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_PIPELINE_SALT", SALT)
        patch.setattr(connection, "LOCK_TIMEOUT_S", 0.1)
        good = Store.open(root / "good")
        bring_up_to_date(good, Inputs(EXAMPLE))
        shutil.copytree(EXAMPLE, inbox)
        for add in (add_bad_files, add_odd_names, add_copies_and_links):
            add(inbox)
        store = Store.open(root / "store")
        before = readable_listing(inbox)
        with running_writer(LOCK, inbox / "mallory" / "locked.db"):
            outcome = bring_up_to_date(store, Inputs(inbox))
        yield Mixed(inbox, store, outcome, good, before)


def readable_listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Without the pipe, which listing would wait for, and without what another process holds open."""
    return {name: entry for name, entry in listing(folder).items() if not name.endswith("-journal")}


def notices(mixed: Mixed) -> set[tuple[str, int | None, str]]:
    return set(mixed.outcome.skipped.select("source", "row", "reason").iter_rows())


@pytest.mark.parametrize(
    ("source", "row", "reason"),
    [
        ("mallory/not%20a%20database", None, "not_a_database"),
        ("mallory/empty", None, "empty_file"),
        ("mallory/pipe", None, "not_a_file"),
        ("mallory/dangling", None, "not_a_file"),
        ("mallory/no%20rows", None, "no_rows"),
        ("mallory/no%20table", None, "no_requests_table"),
        ("mallory/no%20column", None, "missing_column"),
        ("mallory/truncated", None, "damaged_database"),
        ("mallory/locked", None, "locked_database"),
        ("mallory/not%20a%20har.har", None, "not_a_har"),
        ("mallory/cut%20off.har", 2, "broken_entry"),
        ("mallory/cut%20off.har", None, "cut_off_file"),
        *[("mallory/rows", n, reason) for n, (reason, _) in enumerate(BAD_ROWS, 1)],
        ("mallory/rows", 15, "clock_set_back"),
        ("mallory/projects/p/s1.jsonl", 2, "broken_line"),
        ("mallory/projects/p/s1.jsonl", 3, "odd_record"),
        ("mallory/projects/p/s1.jsonl", 6, "no_message_id"),
        ("mallory/projects/p/s1.jsonl", 7, "unfinished_line"),
        ("ada/same%20again", None, "copied_rows"),
        ("elsewhere.db", None, "no_user_folder"),
    ],
)
def test_each_kind_of_damage_is_named(mixed, source, row, reason):
    assert (source, row, reason) in notices(mixed)


def test_every_notice_says_what_was_found_and_what_to_do(mixed):
    for source, _, reason, found, remedy, _ in mixed.outcome.skipped.iter_rows():
        assert source.isprintable(), reason
        assert len(found) > 10, reason
        assert remedy.endswith("."), reason
    assert mixed.outcome.has_left_out


def test_nothing_in_the_landing_folder_changed(mixed):
    assert readable_listing(mixed.inbox) == mixed.before


@pytest.mark.parametrize("table", RESULTS)
def test_the_good_conversations_are_as_without_the_bad_files(mixed, table):
    keys = mixed.good.partitions(table)
    assert len(keys) == 8
    for key in keys:
        found = pl.read_parquet(mixed.store.path(table, key), hive_partitioning=False)
        assert found.equals(pl.read_parquet(mixed.good.path(table, key), hive_partitioning=False)), key


def test_odd_requests_and_odd_names_have_traces_inside_the_store(mixed):
    traced = set(mixed.store.partitions("traces")) - set(mixed.good.partitions("traces"))
    odd_user = next(user for user in discover(mixed.inbox).users if user.startswith("a%2E%2Eb"))
    assert traced == {
        "mallory/s1",
        f"{odd_user}/%2E%2E",
        f"{odd_user}/%2E%2E%2F%2E%2E%2F%2E%2E%2Fclimbed",
    }
    assert not list(mixed.store.root.parent.rglob("climbed*"))
    databases = [key for key in mixed.store.partitions(RAW_REQUESTS.name) if key.startswith(odd_user)]
    assert len(databases) == 4


def test_rows_of_open_and_of_cut_off_databases_are_used(mixed):
    counts = {
        name: mixed.store.read(RAW_REQUESTS, [f"mallory/{name}"]).height for name in ("wal", "journal", "truncated")
    }
    assert (counts["wal"], counts["journal"]) == (4, 1)
    assert 0 < counts["truncated"] < 40


def test_a_copied_database_counts_once(mixed):
    unindexed = mixed.store.read(UNINDEXED_REQUESTS, ["ada"])
    copied = mixed.store.read(RAW_REQUESTS, ["ada/requests"]).height
    assert 0 < unindexed.filter(reason="duplicate").height <= copied
    good, found = (store.read(CONVERSATIONS, ["ada"]).drop("fingerprint") for store in (mixed.good, mixed.store))
    assert found.equals(good)


def test_reasons_are_counted_in_asset_metadata(mixed):
    expected = Counter(mixed.outcome.skipped["reason"])
    with open_instance(mixed.store.root) as instance:
        of_databases, of_transcripts = (by_reason(instance, asset) for asset in ("raw_requests", "conversation_index"))
    for reason in ("not_a_database", "damaged_database", "locked_database", "body_not_json", "response_not_json"):
        assert of_databases[reason] == expected[reason], reason
    for reason in ("no_message_id", "broken_line", "odd_record", "copied_rows", "no_user_folder"):
        assert of_transcripts[reason] == expected[reason], reason
    assert of_databases.keys() | of_transcripts.keys() == expected.keys()


def by_reason(instance: dg.DagsterInstance, asset: str) -> dict[str, int]:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    value = metadata.get("notices_by_reason")
    assert isinstance(value, dg.JsonMetadataValue)
    assert isinstance(value.data, dict)
    return value.data


def test_the_locked_database_is_read_when_it_is_free_and_nothing_else_is_read_again(mixed):
    again = bring_up_to_date(mixed.store, Inputs(mixed.inbox))
    assert again.recomputed["raw_requests"] == 1
    assert mixed.store.read(RAW_REQUESTS, ["mallory/locked"]).height == 1
    assert "locked_database" not in set(again.skipped["reason"])


def test_no_content_and_no_salt_leave_their_places(mixed):
    """Content may stand in the segments table only, the salt nowhere (it came from the environment)."""
    phrases = sorted(phrases_of(mixed.inbox))
    assert len(phrases) > 20
    secrets = [SALT.encode(), mixed.store.salt, mixed.store.salt.hex().encode()]
    for path in mixed.store.root.rglob("*"):
        if not path.is_file():
            continue
        stored = text_of(path)
        assert not [secret for secret in secrets if secret in stored], path
        if path.relative_to(mixed.store.root).parts[0] != "segments":
            assert not [phrase for phrase in phrases if phrase in stored], path
    segments = b"".join(text_of(path) for path in (mixed.store.root / "segments").rglob("*.parquet"))
    assert any(phrase in segments for phrase in phrases)


def phrases_of(inbox: Path) -> set[bytes]:
    """Distinctive pieces of what was said, from the good databases."""
    phrases = set()
    for path in EXAMPLE.rglob("*.db"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            for (body,) in database.execute("SELECT body FROM requests"):
                for message in json.loads(body)["messages"]:
                    content = message["content"]
                    texts = [content] if isinstance(content, str) else [block.get("text", "") for block in content]
                    phrases |= {text[:40].encode() for text in texts if len(text) >= 40 and text[:40].isascii()}
    return {phrase for phrase in phrases if b'"' not in phrase and b"\\" not in phrase and b"\n" not in phrase}


def text_of(path: Path) -> bytes:
    """A file's bytes; of a compressed table its values."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    return json.dumps(pl.read_parquet(path, hive_partitioning=False).to_dicts(), default=str).encode()


class TestLaterDamage:
    """A good database that becomes unusable keeps what was read from it before."""

    @pytest.fixture
    def inbox(self, tmp_path: Path) -> Path:
        shutil.copytree(EXAMPLE / "grace", tmp_path / "inbox" / "grace")
        return tmp_path / "inbox"

    @pytest.mark.parametrize("damage", ["garbage", "empty", "truncated", "other file"])
    def test_results_stay_and_the_damage_is_named(self, tmp_path, inbox, damage):
        store = Store.open(tmp_path / "store")
        bring_up_to_date(store, Inputs(inbox))
        before = {key: pl.read_parquet(store.path("traces", key)) for key in store.partitions("traces")}
        path = inbox / "grace" / "requests.db"
        content = path.read_bytes()
        damaged = {"garbage": b"SQLite format 3\0" + b"\xff" * 5000, "empty": b"", "other file": b"hello",
                   "truncated": content[: len(content) // 2]}  # fmt: skip
        path.write_bytes(damaged[damage])
        outcome = bring_up_to_date(store, Inputs(inbox))
        assert {"earlier_rows_kept"} < set(outcome.skipped["reason"])
        assert outcome.has_left_out
        assert {
            key: pl.read_parquet(store.path("traces", key)) for key in store.partitions("traces")
        }.keys() == before.keys()
        assert "traces" not in outcome.recomputed
        assert bring_up_to_date(store, Inputs(inbox)).recomputed == {}
        path.write_bytes(content)
        mended = bring_up_to_date(store, Inputs(inbox))
        assert mended.skipped.is_empty()
        assert "traces" not in mended.recomputed
