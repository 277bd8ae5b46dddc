"""Input made to do harm: links, names, sizes. Nothing of it leaves its place, and the rest is as without it."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.landing import discover
from kv_pipeline.limits import LINKS_VARIABLE, PAYLOAD_VARIABLE, max_payload_bytes
from kv_pipeline.sources.claude_code_proxy.database import RequestRow, read_rows
from kv_pipeline.sources.transcripts.reader import read_transcript
from kv_pipeline_tests.sources.factories import make_database, make_record, make_row, make_rows, make_transcript


@pytest.fixture
def inbox(tmp_path):
    for user in ("ada", "mallory"):
        (tmp_path / "inbox" / user).mkdir(parents=True)
    make_database(tmp_path / "inbox" / "ada" / "requests.db", make_rows(1))
    make_transcript(tmp_path / "inbox" / "ada" / "projects" / "p" / "s1.jsonl", [make_record()])
    return tmp_path / "inbox"


def reasons(landing):
    return sorted((skip.source, skip.reason) for skip in landing.skips)


class TestLinks:
    @pytest.mark.parametrize(
        ("link", "target"),
        [
            ("mallory/requests.db", "ada/requests.db"),
            ("mallory/projects", "ada/projects"),
            ("mallory/log.jsonl", "ada/projects/p/s1.jsonl"),
            ("mallory2", "ada"),
        ],
    )
    def test_into_another_users_folder_are_never_followed(self, inbox, link, target):
        (inbox / link).symlink_to(inbox / target)
        landing = discover(inbox)
        assert landing.users == ["ada"]
        assert reasons(landing) == [(link, "foreign_link")]

    def test_within_the_users_own_folder_are_followed(self, inbox):
        (inbox / "ada" / "again.db").symlink_to(inbox / "ada" / "requests.db")
        assert sorted(discover(inbox).databases) == ["ada/again", "ada/requests"]

    def test_of_the_operator_lead_out_unless_that_is_forbidden(self, inbox, tmp_path, monkeypatch):
        make_database(tmp_path / "elsewhere.db", make_rows(1))
        (inbox / "mallory" / "x.db").symlink_to(tmp_path / "elsewhere.db")
        assert "mallory/x" in discover(inbox).databases
        monkeypatch.setenv(LINKS_VARIABLE, "0")
        landing = discover(inbox)
        assert (list(landing.databases), reasons(landing)) == (
            ["ada/requests"], [("mallory/x.db", "foreign_link")],
        )  # fmt: skip

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
    def test_of_others_lead_out_only_to_what_is_theirs(self, inbox, tmp_path):
        for name, owner in (("theirs", 4321), ("ours", 0)):
            os.chown(make_database(tmp_path / f"{name}.db", make_rows(1)), owner, owner)
            (inbox / "mallory" / f"{name}.db").symlink_to(tmp_path / f"{name}.db")
            os.chown(inbox / "mallory" / f"{name}.db", 4321, 4321, follow_symlinks=False)
        landing = discover(inbox)
        assert sorted(landing.databases) == ["ada/requests", "mallory/theirs"]
        assert reasons(landing) == [("mallory/ours.db", "foreign_link")]


class TestSizes:
    def test_rows_over_the_limit_are_counted_and_never_loaded(self, tmp_path, monkeypatch):
        monkeypatch.setenv(PAYLOAD_VARIABLE, "100000")
        rows = [make_row(id="a"), make_row(id="b", body="x" * 100_001), make_row(id="c"),
                make_row(id="d", response="z" * 100_001), make_row(id="e")]  # fmt: skip
        path = make_database(tmp_path / "x.db", rows)
        found = list(read_rows(path, "ada/x"))
        assert [row.id for row in found if isinstance(row, RequestRow)] == [b"a", b"c", b"e"]
        assert [(row.row, row.reason) for row in found if not isinstance(row, RequestRow)] == [
            (2, "large_row"), (4, "large_row"),
        ]  # fmt: skip

    def test_a_row_that_grows_when_it_is_read_does_not_take_the_memory(self, tmp_path):
        """A row of 300 MB, and a process that may use 200."""
        path = make_database(tmp_path / "bomb.db", make_rows(2))
        code = (
            "import sys, pathlib\n"
            "from kv_pipeline.sources.claude_code_proxy.database import read_rows\n"
            "print([getattr(row, 'reason', 'row') for row in read_rows(pathlib.Path(sys.argv[1]), 'x/y')])\n"
        )
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE requests SET body = zeroblob(300000000) WHERE rowid = 2")
        limit = 200 * 1024 * 1024
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )  # fmt: skip
        assert done.stdout == "['row', 'large_row']\n", done.stderr

    def test_a_line_of_100_mb(self, tmp_path, monkeypatch):
        monkeypatch.setenv(PAYLOAD_VARIABLE, str(50 * 1024 * 1024))
        path = tmp_path / "s1.jsonl"
        with path.open("wb") as file:
            file.write(b'{"type":"assistant","message":"')
            for _ in range(100):
                file.write(b"x" * 1_000_000)
            file.write(b'"}\n')
        make_transcript(tmp_path / "s2.jsonl", [make_record()])
        with path.open("ab") as file:
            file.write((tmp_path / "s2.jsonl").read_bytes())
        found = read_transcript(path, "ada/s1")
        assert [(skip.row, skip.reason) for skip in found.skips] == [(1, "long_line")]
        assert len(found.answers) == 1

    @pytest.mark.parametrize("text", ["much", "-1", "0", "1.5"])
    def test_a_limit_that_is_none(self, monkeypatch, text):
        monkeypatch.setenv(PAYLOAD_VARIABLE, text)
        with pytest.raises(UsageError, match="not a whole number of bytes"):
            max_payload_bytes()
