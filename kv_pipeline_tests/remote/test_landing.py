from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing

import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.landing import discover
from kv_pipeline.remote.objects import Objects
from kv_pipeline.sources.claude_code_proxy.connection import opened
from kv_pipeline.steps.settled import settled
from kv_pipeline_tests.remote.conftest import EXAMPLE

LOG_LINE = json.dumps({"request": {"method": "POST"}, "response": None}).encode()


def put(machines, *names, content=b"x"):
    for name in names:
        machines.bucket.put(f"inbox/{name}", content)
    return machines.at("inbox")


def found(landing):
    return (
        {key: file.recorded_by for key, file in landing.databases.items()},
        {user: [file.source for file in own.files] for user, own in landing.transcripts.items()},
        sorted((skip.source, skip.reason) for skip in landing.skips),
        landing.users,
    )


@pytest.mark.parametrize(
    "names",
    [
        ["ada/requests.db", "ada/deep/er/b.db", "ada/projects/p/s.jsonl", "bob/projects/q/r/t.jsonl", "ada/notes.txt",
         "empty/x.txt", "ada/projects/p/s.meta.json", "ada/requests.db-wal", "ada/projects/p/s/agent-1.jsonl"],
        ["lost.db", "lost.har", "lost.txt", "ada/a.db", ".git/a.db"],
        ["ada/x.har", "ada/projects/p/x.har", "ada/.claude/b.db", "ada/a.jsonl"],
        ["ada/x y.db", "ada/x%20y.db", "ada/ä~.db", "a b/..c.db", "ada/back\\slash.db"],
        ["ada/a.har", "ada/a.har.db"],
        ["projects/p/s.jsonl", "requests.db", "log.jsonl", "x.har"],
    ],
)  # fmt: skip
def test_as_a_folder_with_the_same_files(machines, tmp_path, names):
    for name in names:
        content = LOG_LINE if name.endswith(".jsonl") and "projects/" not in name else b"x"
        path = tmp_path / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        put(machines, name, content=content)
    assert found(discover(machines.at("inbox"))) == found(discover(tmp_path / "inbox"))


@pytest.mark.parametrize("name", ["mallory/../ada/x.db", "mallory/projects//x.jsonl", "mallory/\x01.db"])
def test_names_that_are_no_paths_are_told_and_cost_nobody_else_anything(machines, name):
    put(machines, "ada/a.db", name)
    landing = discover(machines.at("inbox"))
    assert list(landing.databases) == ["ada/a"]
    ((source, reason),) = [(skip.source, skip.reason) for skip in landing.skips]
    assert (source.split("/")[0], reason) == ("mallory", "unreadable_folder")


def test_a_name_that_is_too_long_for_a_file_is_told(machines):
    landing = discover(put(machines, f"ada/projects/p/{'x' * 300}.jsonl", "ada/projects/p/y.jsonl"))
    assert [file.path.name for file in landing.transcripts["ada"].files] == ["y.jsonl"]
    assert [skip.reason for skip in landing.skips] == ["unreadable_file"]


def test_objects_that_mark_folders_are_nothing(machines):
    put(machines, "", "ada/", "ada/projects/", content=b"")
    landing = discover(put(machines, "ada/a.db"))
    assert (list(landing.databases), landing.transcripts, landing.skips) == (["ada/a"], {}, [])


def test_nothing_there_is_a_wrong_url(machines):
    with pytest.raises(UsageError, match="There is nothing under s3://"):
        discover(machines.at("inbox"))


def test_fingerprints_are_the_same_on_every_machine_until_something_changes(machines):
    url = put(machines, "ada/a.db", "ada/projects/p/s.jsonl")
    first = discover(url)
    machines.use("second")
    second = discover(url)
    put(machines, "ada/a.db-wal", "ada/projects/p/s.meta.json")
    third = discover(url)
    databases = [landing.databases["ada/a"].fingerprint for landing in (first, second, third)]
    transcripts = [landing.transcripts["ada"].fingerprint for landing in (first, second, third)]
    assert databases[0] == databases[1] != databases[2]
    assert transcripts[0] == transcripts[1] != transcripts[2]


def test_a_database_is_read_with_its_log_and_no_copy_of_it_stays(machines, tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (a)")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("INSERT INTO t VALUES ('in the log')")
        for name in ("a.db", "a.db-wal"):
            put(machines, f"ada/{name}", content=(tmp_path / name).read_bytes())
    file = discover(machines.at("inbox")).databases["ada/a"]
    assert file.n_bytes == (tmp_path / "a.db").stat().st_size
    (tmp_path / "scratch").mkdir()
    with file.on_disk(tmp_path / "scratch") as path, opened(path) as connection:
        assert connection.execute("SELECT a FROM t").fetchall() == [(b"in the log",)]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_database_that_is_gone_by_the_time_it_is_read_is_missing(machines, tmp_path):
    file = discover(put(machines, "ada/a.db", "bob/b.db")).databases["ada/a"]
    machines.bucket.delete("inbox/ada/a.db")
    with file.on_disk(tmp_path) as path:
        assert not path.exists()


def test_transcripts_are_kept_until_they_change_or_their_user_is_gone(machines, monkeypatch):
    asked = []
    download = Objects.download
    monkeypatch.setattr(Objects, "download", lambda self, name, path: asked.append(name) or download(self, name, path))
    cache = machines.use("only")
    url = put(machines, "ada/projects/p/s.jsonl", "ada/projects/p/t.jsonl", "ada/projects/p/s.meta.json", "bob/b.db")
    for _ in range(2):
        own = discover(url).transcripts["ada"]
        own.fetch()
        assert [file.path.read_bytes() for file in own.files] == [b"x", b"x"]
        assert own.files[0].path.with_name("s.meta.json").exists()
    assert len(asked) == 3
    put(machines, "ada/projects/p/t.jsonl", content=b"more")
    own = discover(url).transcripts["ada"]
    own.fetch()
    assert asked[3:] == ["ada/projects/p/t.jsonl"]
    assert sorted(path.read_bytes() for path in cache.rglob("*.jsonl")) == [b"more", b"x"]
    for name in ("s.jsonl", "t.jsonl"):
        machines.bucket.delete(f"inbox/ada/projects/p/{name}")
    discover(url)
    assert list(cache.rglob("*.jsonl")) == []


def test_each_version_of_a_log_is_looked_at_once(machines, monkeypatch):
    asked = []
    beginning = Objects.beginning
    monkeypatch.setattr(Objects, "beginning", lambda self, name, n: asked.append(name) or beginning(self, name, n))
    url = put(machines, "ada/log.jsonl", content=LOG_LINE)
    put(machines, "ada/other.jsonl", content=b"{}\n")
    assert [list(discover(url).databases) for _ in range(2)] == [["ada/log.jsonl"]] * 2
    assert sorted(asked) == ["ada/log.jsonl", "ada/other.jsonl"]
    put(machines, "ada/other.jsonl", content=LOG_LINE)
    assert list(discover(url).databases) == ["ada/log.jsonl", "ada/other.jsonl"]
    assert asked[2:] == ["ada/other.jsonl"]


def test_an_object_stands_still_when_it_has_not_changed_for_a_while(machines):
    url = put(machines, "ada/a.db", "ada/projects/p/s.jsonl")
    look = settled(discover(url), {}, 0, 60)
    assert look.waiting == ["ada/a", "transcripts of ada"]
    put(machines, "ada/a.db", content=b"more")
    look = settled(discover(url), look.seen, 61, 60)
    assert look.waiting == ["ada/a"]
    look = settled(discover(url), look.seen, 122, 60)
    assert (look.waiting, list(look.landing.databases)) == ([], ["ada/a"])


def test_the_landing_folder_is_only_read(machines, tmp_path):
    shutil.copytree(EXAMPLE / "grace", tmp_path / "inbox" / "grace")
    machines.bucket.upload(tmp_path / "inbox", "inbox")
    before = machines.bucket.contents("inbox")
    landing = discover(machines.at("inbox"))
    landing.transcripts["grace"].fetch()
    with landing.databases["grace/requests"].on_disk(tmp_path):
        assert machines.bucket.contents("inbox") == before
