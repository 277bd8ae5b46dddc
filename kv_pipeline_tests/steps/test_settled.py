from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from kv_pipeline.landing import discover
from kv_pipeline.steps.settled import PATIENCE, is_openable, settled
from kv_pipeline_tests.sources.factories import listing, make_database, make_record, make_rows, make_transcript
from kv_pipeline_tests.sources.writers import DIE_WITH_WAL, LOCK, run_writer, running_writer

SETTLE_S = 60.0


@pytest.fixture
def inbox(tmp_path):
    (tmp_path / "inbox" / "ada").mkdir(parents=True)
    make_database(tmp_path / "inbox" / "ada" / "requests.db", make_rows(40, 3000))
    make_transcript(tmp_path / "inbox" / "ada" / "projects" / "p" / "s1.jsonl", [make_record()])
    return tmp_path / "inbox"


def look(inbox, seen, now_s):
    return settled(discover(inbox), seen, now_s, SETTLE_S)


def test_files_wait_until_they_stand_still(inbox):
    first = look(inbox, {}, 1000)
    assert first.waiting == ["ada/requests", "transcripts of ada"]
    assert (first.landing.databases, first.landing.transcripts) == ({}, {})
    second = look(inbox, first.seen, 1059)
    assert len(second.waiting) == 2
    third = look(inbox, second.seen, 1060)
    assert third.waiting == []
    assert (list(third.landing.databases), list(third.landing.transcripts)) == (["ada/requests"], ["ada"])


def test_a_change_starts_the_wait_anew_for_that_file_only(inbox):
    seen = look(inbox, {}, 1000).seen
    with (inbox / "ada" / "projects" / "p" / "s1.jsonl").open("a") as file:
        file.write("\n")
    second = look(inbox, seen, 1060)
    assert second.waiting == ["transcripts of ada"]
    assert look(inbox, second.seen, 1120).waiting == []


def test_a_clock_that_was_set_back_makes_files_wait_anew_and_no_longer(inbox):
    seen = look(inbox, {}, 1_000_000).seen
    back = look(inbox, seen, 500)
    assert len(back.waiting) == 2
    assert look(inbox, back.seen, 560).waiting == []


def test_what_left_is_forgotten(inbox):
    seen = look(inbox, {}, 1000).seen
    (inbox / "ada" / "requests.db").unlink()
    assert list(look(inbox, seen, 1060).seen) == ["transcripts of ada"]


def test_a_database_that_is_half_copied_waits_longer_but_not_forever(inbox):
    path = inbox / "ada" / "requests.db"
    os.truncate(path, 60_000)
    assert not is_openable(path)
    seen = look(inbox, {}, 0).seen
    assert look(inbox, seen, SETTLE_S * 2).waiting == ["ada/requests"]
    assert look(inbox, seen, SETTLE_S * PATIENCE).waiting == []


def test_a_locked_database_waits(inbox):
    path = inbox / "ada" / "requests.db"
    with running_writer(LOCK, path):
        assert not is_openable(path)
    assert is_openable(path)


def test_looking_changes_nothing(inbox):
    run_writer(DIE_WITH_WAL, make_database(inbox / "ada" / "wal.db", make_rows(1)))
    before = listing(inbox)
    assert is_openable(inbox / "ada" / "wal.db")
    assert is_openable(inbox / "ada" / "requests.db")
    assert listing(inbox) == before


@pytest.mark.parametrize("content", [b"", b"hello", b"SQLite format 3\0"])
def test_what_is_no_database_is_left_to_the_reader_to_tell(tmp_path, content):
    (tmp_path / "x.db").write_bytes(content)
    assert is_openable(tmp_path / "x.db")
    assert is_openable(tmp_path / "missing.db")


def test_every_page_size(tmp_path):
    for size in (512, 65_536):
        with closing(sqlite3.connect(tmp_path / f"{size}.db")) as database, database:
            database.execute(f"PRAGMA page_size = {size}")
            database.execute("CREATE TABLE t (a)")
        assert is_openable(tmp_path / f"{size}.db")
        os.truncate(tmp_path / f"{size}.db", size)
        assert not is_openable(tmp_path / f"{size}.db")
