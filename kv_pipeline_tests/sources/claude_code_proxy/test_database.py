from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from kv_pipeline.errors import InputError
from kv_pipeline.sources.claude_code_proxy import connection
from kv_pipeline.sources.claude_code_proxy.database import RequestRow, read_rows
from kv_pipeline_tests.sources.factories import (
    LOOSE_SCHEMA,
    insert_rows,
    listing,
    make_body,
    make_database,
    make_row,
    make_rows,
)
from kv_pipeline_tests.sources.writers import (
    DIE_IN_TRANSACTION,
    DIE_WITH_WAL,
    HOLD_WAL,
    KEEP_WRITING_WAL,
    LOCK,
    run_writer,
    running_writer,
)


def read(path: Path) -> list[RequestRow]:
    return [row for row in read_rows(path, "ada/requests") if not isinstance(row, InputError)]


def ids(path: Path) -> list[str]:
    return [row.id.decode() for row in read(path) if row.id is not None]


def failure(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        list(read_rows(path, "ada/requests"))
    return caught.value


def test_rows_come_in_row_order_and_batches_leave_none_out(tmp_path):
    path = make_database(tmp_path, make_rows(150))
    assert ids(path) == [f"r{n}" for n in range(1, 151)]
    assert [row.row_id for row in read(path)] == list(range(1, 151))


@pytest.mark.parametrize("row_id", [-(2**63), -5, 0, 2**63 - 1])
def test_any_row_id(tmp_path, row_id):
    path = make_database(tmp_path, [make_row()])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE requests SET rowid = ?", (row_id,))
    assert [row.row_id for row in read(path)] == [row_id]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="null"),
        pytest.param(b"\xff\x00", b"\xff\x00", id="blob"),
        pytest.param(17, b"17", id="integer"),
        pytest.param(1.5, b"1.5", id="float"),
        pytest.param("a\0b", b"a\0b", id="zero inside"),
        pytest.param("ü🙂", "ü🙂".encode(), id="unicode"),
    ],
)
def test_cells_of_any_type_are_bytes(tmp_path, value, expected):
    path = make_database(tmp_path, [])
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript("DROP TABLE requests; CREATE TABLE requests (id, timestamp, body, response)")
        database.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", [value] * 4)
    assert read(path) == [RequestRow(1, expected, expected, expected, expected, *[None] * 5)]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ('{"X-Claude-Code-Session-Id":["s1"],"X-Claude-Code-Agent-Id":["a1"],"X-Api-Key":["k"]}', (b"s1", b"a1")),
        ('{"X-Claude-Code-Session-Id":["s1","s2"]}', (b"s1", None)),
        ('{"X-Claude-Code-Session-Id":"s1"}', (None, None)),
        ('{"X-Claude-Code-Session-Id":', (None, None)),
        ("[]", (None, None)),
        (b'{"X-Claude-Code-Session-Id":["s1"]}', (None, None)),
        (7, (None, None)),
        (None, (None, None)),
    ],
)
def test_of_the_headers_two_ids_are_read(tmp_path, headers, expected):
    path = make_database(tmp_path, [make_row()], schema=LOOSE_SCHEMA)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE requests SET headers = ?", (headers,))
    (row,) = read(path)
    assert (row.session_id, row.agent_id) == expected


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_utf16_database_reads_like_any_other(tmp_path, encoding):
    row = make_row(body=make_body(messages=[{"role": "user", "content": "ü🙂"}]))
    utf8 = make_database(tmp_path / "8.db", [row])
    utf16 = make_database(tmp_path / "16.db", [row], setup=f'PRAGMA encoding = "{encoding}";')
    assert read(utf16) == read(utf8)


def test_upper_case_columns_are_the_same_columns(tmp_path):
    path = tmp_path / "requests.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE Requests (ID, Timestamp, BODY, Response, Model)")
        database.execute("INSERT INTO Requests VALUES ('a', 'b', 'c', 'd', 'e')")
    assert read(path) == [RequestRow(1, b"a", b"b", b"c", b"d", None, b"e", None, None, None)]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("CREATE TABLE other (id)", "no_requests_table"),
        ("CREATE TABLE requests (id, timestamp, body)", "missing_column"),
        ("CREATE TABLE requests (id TEXT PRIMARY KEY, timestamp, body, response) WITHOUT ROWID", "odd_table"),
        ("CREATE VIEW requests AS SELECT 1 AS id, 2 AS timestamp, 3 AS body, 4 AS response", "no_requests_table"),
        ("CREATE TABLE requests (rowid, id, timestamp, body, response);"
         "INSERT INTO requests VALUES ('x', 'a', 'b', 'c', 'd')", "odd_table"),
    ],
    ids=["no table", "no column", "no row ids", "a view", "a column called rowid"],
)  # fmt: skip
def test_other_tables(tmp_path, schema, reason):
    path = tmp_path / "requests.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(schema)
    error = failure(path)
    assert (error.reason, error.source, error.row) == (reason, "ada/requests", None)
    assert error.remedy


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"id,timestamp\n", "not_a_database"),
        (b"SQLite format 2\x00", "not_a_database"),
        (b"SQLite format 3\x00", "damaged_database"),
        (b"SQLite format 3\x00" + b"\xff" * 4096, "damaged_database"),
    ],
    ids=["empty", "text", "another version", "only the first bytes", "garbage after them"],
)
def test_files_that_are_no_database(tmp_path, content, reason):
    path = tmp_path / "requests.db"
    path.write_bytes(content)
    assert failure(path).reason == reason
    assert path.read_bytes() == content


def test_a_missing_file_a_folder_and_a_pipe_are_named_and_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.db")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "dangling.db").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "folder", "dangling"):
        assert failure(tmp_path / f"{name}.db").reason == "not_a_file", name
    assert failure(tmp_path / "missing.db").reason == "unreadable_file"


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_of_a_truncated_file_the_rows_before_the_cut_are_read(tmp_path, keep):
    path = make_database(tmp_path, make_rows(60, body_bytes=3000))
    whole = path.stat().st_size
    os.truncate(path, int(whole * keep))
    before = listing(tmp_path)
    rows, reasons = [], set()
    try:
        for row in read_rows(path, "ada/requests"):
            (reasons.add(row.reason) if isinstance(row, InputError) else rows.append(row.row_id))
    except InputError as error:
        reasons.add(error.reason)
    assert 0 < len(rows) < 60
    assert rows == sorted(set(rows))
    assert reasons & {"damaged_database", "damaged_row"}
    assert listing(tmp_path) == before


def test_damage_inside_one_row_loses_that_row_only(tmp_path):
    path = make_database(tmp_path, make_rows(20, body_bytes=30_000))
    with closing(sqlite3.connect(path)) as database:
        page_size = database.execute("PRAGMA page_size").fetchone()[0]
    content = bytearray(path.read_bytes())
    pages = [
        n for n in range(len(content) // page_size) if b"x" * (page_size - 4) in content[n * page_size :][:page_size]
    ]
    middle = pages[len(pages) // 2] * page_size
    content[middle : middle + 4] = b"\xff\xff\xff\xff"  # the chain of a long value's pages leads nowhere
    path.write_bytes(content)
    found = list(read_rows(path, "ada/requests"))
    lost = [row for row in found if isinstance(row, InputError)]
    assert len(found) == 20
    assert [error.reason for error in lost] == ["damaged_row"]
    assert lost[0].row is not None


def test_a_locked_database_is_named_and_the_lock_is_waited_for_no_longer_than_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "LOCK_TIMEOUT_S", 0.1)
    path = make_database(tmp_path, [make_row()])
    with running_writer(LOCK, path):
        error = failure(path)
    assert error.reason == "locked_database"
    assert "Run again" in error.remedy
    assert ids(path) == ["r1"]


def test_rows_are_those_of_one_moment(tmp_path):
    """One read transaction: a proxy in rollback mode waits with its commit until reading has ended."""
    path = make_database(tmp_path, make_rows(200))
    rows = read_rows(path, "ada/requests")
    next(rows)
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as proxy:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            proxy.execute("UPDATE requests SET model = 'other' WHERE rowid = 200")
        assert len(list(rows)) == 199
        insert_rows(proxy, [make_row(id="late")])
    assert len(read(path)) == 201


def test_an_abandoned_reading_frees_the_database(tmp_path):
    path = make_database(tmp_path, make_rows(200))
    rows = read_rows(path, "ada/requests")
    next(rows)
    rows.close()
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as proxy:
        insert_rows(proxy, [make_row(id="late")])
    assert len(read(path)) == 201


class TestNothingIsWritten:
    """Folder listing, bytes and times of change are as before, whatever state the database is in."""

    def check(self, path: Path, expected: list[str], scratch: Path | None = None) -> None:
        before = listing(path.parent)
        found = [row.id.decode() for row in read_rows(path, "d", scratch)]  # type: ignore[union-attr]
        assert found == expected
        assert listing(path.parent) == before

    def test_at_rest(self, tmp_path):
        self.check(make_database(tmp_path, make_rows(3)), ["r1", "r2", "r3"])

    def test_wal_mode_closed_in_good_order(self, tmp_path):
        path = make_database(tmp_path, make_rows(2), setup="PRAGMA journal_mode = WAL;")
        assert [file.name for file in tmp_path.iterdir()] == ["requests.db"]
        self.check(path, ["r1", "r2"])

    @pytest.mark.parametrize("lost", [(), ("-shm",), ("-wal",)], ids=["wal and shm", "wal only", "shm only"])
    def test_wal_left_by_a_crash(self, tmp_path, lost):
        path = make_database(tmp_path, make_rows(1))
        run_writer(DIE_WITH_WAL, path)
        for suffix in lost:
            path.with_name(path.name + suffix).unlink()
        in_wal = [] if "-wal" in lost else ["wal r1", "wal r2", "wal r3"]
        self.check(path, ["r1", *in_wal])

    def test_wal_while_another_process_has_it_open(self, tmp_path):
        path = make_database(tmp_path, make_rows(1))
        with running_writer(HOLD_WAL, path):
            self.check(path, ["r1", "wal r1", "wal r2", "wal r3"])

    def test_journal_left_by_a_crash_is_rolled_back_in_a_copy(self, tmp_path):
        path = make_database(tmp_path, make_rows(3, body_bytes=2000))
        run_writer(DIE_IN_TRANSACTION, path)
        assert path.with_name("requests.db-journal").stat().st_size > 0
        before = listing(tmp_path)
        assert [row.body for row in read(path)] == [row["body"].encode() for row in make_rows(3, body_bytes=2000)]
        assert listing(tmp_path) == before

    def test_a_link_is_read_with_the_companions_of_its_target(self, tmp_path):
        (tmp_path / "proxy").mkdir()
        path = make_database(tmp_path / "proxy", make_rows(1))
        run_writer(DIE_WITH_WAL, path)
        link = tmp_path / "link.db"
        link.symlink_to(path)
        before = listing(tmp_path)
        assert ids(link) == ["r1", "wal r1", "wal r2", "wal r3"]
        assert listing(tmp_path) == before

    @pytest.mark.parametrize("name", ["a b?c#d%20.db", "ü🙂.db", "it's..db", os.fsdecode(b"\xff.db")], ids=ascii)
    def test_odd_names(self, tmp_path, name):
        self.check(make_database(tmp_path / name, make_rows(2)), ["r1", "r2"])

    def test_the_private_copy_is_made_where_it_was_asked_for_and_removed(self, tmp_path):
        scratch = tmp_path / "scratch"
        (tmp_path / "in").mkdir()
        scratch.mkdir()
        path = make_database(tmp_path / "in", make_rows(1))
        run_writer(DIE_WITH_WAL, path)
        rows = read_rows(path, "d", scratch)
        next(rows)
        assert [file.name for folder in scratch.iterdir() for file in folder.glob("copy.db")] == ["copy.db"]
        rows.close()
        assert list(scratch.iterdir()) == []


def test_a_database_that_is_being_written_gives_every_row_that_was_there_before(tmp_path):
    path = make_database(tmp_path, make_rows(300))
    with running_writer(KEEP_WRITING_WAL, path):
        for _ in range(3):
            found = ids(path)
            assert found[:300] == [f"r{n}" for n in range(1, 301)]
            assert len(set(found)) == len(found)


def test_a_read_only_folder_is_enough(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, setup in (("rest", ""), ("wal", "PRAGMA journal_mode = WAL;")):
        make_database(folder / f"{name}.db", make_rows(2), setup=setup)
    shutil.copy(make_database(folder / "crash.db", make_rows(2)), tmp_path / "copy.db")
    run_writer(DIE_WITH_WAL, folder / "crash.db")
    for file in folder.iterdir():
        file.chmod(0o400)
    folder.chmod(0o500)
    before = listing(folder)
    try:
        counts = {path.name: len(read(path)) for path in sorted(folder.glob("*.db"))}
    finally:
        folder.chmod(0o700)
    assert counts == {"crash.db": 5, "rest.db": 2, "wal.db": 2}
    assert listing(folder) == before


def test_a_page_that_the_tables_tree_names_twice_gives_no_row_twice(tmp_path):
    path = make_database(tmp_path / "requests.db", make_rows(8, body_bytes=1500))
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'requests'").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    content, page = bytearray(path.read_bytes()), (root - 1) * page_bytes
    first, second = (page + cell for cell in struct.unpack_from(">2H", content, page + 12))
    content[second : second + 4] = content[first : first + 4]  # both cells name the first child
    path.write_bytes(content)
    found = []
    with pytest.raises(InputError, match="out of order, or twice"):
        found.extend(row.row_id for row in read_rows(path, "ada/requests"))
    assert found == sorted(set(found)) != []
