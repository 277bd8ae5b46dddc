from __future__ import annotations

import os

import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.landing import direct, discover
from kv_pipeline.store import Store
from kv_pipeline_tests.factories import bring_up_to_date, open_store, recorded, write_database, write_transcript
from kv_pipeline_tests.sources.factories import make_har


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return root


def reasons(landing):
    return [(skip.source, skip.reason) for skip in landing.skips]


def test_users_databases_and_transcripts(tmp_path):
    make(tmp_path, "ada/requests.db", "ada/deep/er/b.db", "ada/projects/p/s.jsonl", "bob/projects/q/r/t.jsonl",
         "ada/notes.txt", "ada/s.jsonl", "empty/x.txt", "ada/projects/p/s.meta.json")  # fmt: skip
    landing = discover(tmp_path)
    assert sorted(landing.databases) == ["ada/deep/er/b", "ada/requests"]
    assert {user: [t.source for t in own.files] for user, own in landing.transcripts.items()} == {
        "ada": ["ada/projects/p/s.jsonl"],
        "bob": ["bob/projects/q/r/t.jsonl"],
    }
    assert landing.users == ["ada", "bob"]
    assert landing.skips == []


def test_a_database_outside_a_users_folder_is_told(tmp_path):
    assert reasons(discover(make(tmp_path, "lost.db", "ada/a.db"))) == [("lost.db", "no_user_folder")]


def test_hidden_folders_are_no_users(tmp_path):
    assert discover(make(tmp_path, ".git/a.db", "ada/a.db")).users == ["ada"]


def test_an_inbox_that_is_one_users_folder(tmp_path):
    landing = discover(make(tmp_path / "ada", "requests.db", "projects/p/s.jsonl"))
    assert (sorted(landing.databases), landing.users) == (["ada/requests"], ["ada"])


def test_a_missing_inbox(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        discover(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("user", "name", "key"),
    [
        ("a b", "c d.db", "a%20b/c%20d"),
        ("a..b", "c...db", "a%2E%2Eb/c%2E%2E"),
        ("é", "日.db", "%C3%A9/%E6%97%A5"),
        ("a%2Fb", "x.db", "a%252Fb/x"),
        ("ada", ".tmp-1-x.db", "ada/%2Etmp-1-x"),
        ("new\nline", "[x]*?.db", "new%0Aline/%5Bx%5D%2A%3F"),
        ("-rf", "--help.db", "-rf/--help"),
    ],
)
def test_odd_names_become_safe_keys(tmp_path, user, name, key):
    landing = discover(make(tmp_path, f"{user}/{name}"))
    assert list(landing.databases) == [key]
    assert landing.users == [key.partition("/")[0]]


def test_names_that_are_no_unicode_are_used(tmp_path):
    inbox = make(tmp_path, "ada/projects/p/s.jsonl")
    for odd in (b"ada/r\xfe.db", b"ada/projects/p/s\xff.jsonl", b"bob\xff/r.db"):
        make(inbox, os.fsdecode(odd))
    landing = discover(inbox)
    assert reasons(landing) == []
    assert list(landing.databases) == ["ada/r%ED%B3%BE", "bob%ED%B3%BF/r"]
    sources = [file.source for file in landing.transcripts["ada"].files]
    assert sources == ["ada/projects/p/s.jsonl", r"ada/projects/p/s\udcff.jsonl"]


def test_links(tmp_path):
    """Files and users may be links; folders inside a user's folder are not followed, so no circle can form."""
    make(tmp_path, "elsewhere/x.db", "inbox/ada/a.db", "outside/projects/p/s.jsonl")
    inbox = tmp_path / "inbox"
    (inbox / "ada" / "linked.db").symlink_to(tmp_path / "elsewhere" / "x.db")
    (inbox / "ada" / "folder").symlink_to(tmp_path / "elsewhere")
    (inbox / "ada" / "circle").symlink_to(inbox)
    (inbox / "ada" / "broken.db").symlink_to(tmp_path / "nowhere")
    (inbox / "bob").symlink_to(tmp_path / "outside")
    landing = discover(inbox)
    assert sorted(landing.databases) == ["ada/a", "ada/broken", "ada/linked"]
    assert landing.users == ["ada", "bob"]


def test_a_session_id_that_climbs_stays_in_the_store(tmp_path, monkeypatch):
    """An agent's transcript names its session in its records, and anybody may have written them."""
    inbox = tmp_path / "inbox"
    write_database(inbox / "ada" / "requests.db", [recorded("m1"), recorded("m2", 9)])
    write_transcript(inbox / "ada", "../../../../escaped", [("m1", 0)], agent="a1")
    write_transcript(inbox / "ada", ".tmp-1-s", [("m2", 9)])
    store = open_store(tmp_path / "deep" / "er" / "store", monkeypatch)
    bring_up_to_date(store, inbox)
    assert store.partitions("traces") == ["ada/%2E%2E%2F%2E%2E%2F%2E%2E%2F%2E%2E%2Fescaped", "ada/%2Etmp-1-s"]
    assert list(tmp_path.rglob("*escaped*.parquet")) == [
        path for path in tmp_path.rglob("*escaped*.parquet") if path.is_relative_to(store.root)
    ]
    assert bring_up_to_date(store, inbox)["conversations"] == []


# --- Direct paths -----------------------------------------------------------------------------------------------------


def test_direct_paths(tmp_path):
    make(tmp_path, "x/my requests.db", "projects/p/s.jsonl")
    landing = direct([tmp_path / "x" / "my requests.db", tmp_path / "projects"])
    assert list(landing.databases) == ["local/my%20requests"]
    assert [t.source for t in landing.transcripts["local"].files] == ["local/projects/s.jsonl"]


def test_direct_databases_of_one_name(tmp_path):
    make(tmp_path, "x/r.db", "y/r.db")
    landing = direct([tmp_path / "x" / "r.db", tmp_path / "y" / "r.db"])
    assert landing.databases["local/r"].path == tmp_path / "x" / "r.db"
    assert reasons(landing) == [("local/r", "same_name")]


def test_a_direct_path_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        direct([tmp_path / "r.db"])


# --- Fingerprints -----------------------------------------------------------------------------------------------------


def fingerprints(root):
    landing = discover(root)
    return landing.databases["ada/r"].fingerprint, landing.transcripts["ada"].fingerprint


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ada/r.db", (True, False)),
        ("ada/r.db-wal", (True, False)),
        ("ada/r.db-shm", (False, False)),
        ("ada/projects/p/s.jsonl", (False, True)),
        ("ada/projects/p/s.meta.json", (False, True)),
        ("ada/projects/p/new.jsonl", (False, True)),
        ("ada/notes.txt", (False, False)),
    ],
)
def test_fingerprints_change_with_the_files(tmp_path, name, changes):
    make(tmp_path, "ada/r.db", "ada/projects/p/s.jsonl")
    before = fingerprints(tmp_path)
    (tmp_path / name).write_text("longer than before")
    assert tuple(a != b for a, b in zip(before, fingerprints(tmp_path), strict=True)) == changes
    assert fingerprints(tmp_path) == fingerprints(tmp_path)


def test_a_file_that_grew_within_one_tick_of_the_clock(tmp_path):
    make(tmp_path, "ada/r.db", "ada/projects/p/s.jsonl")
    path = tmp_path / "ada" / "r.db"
    before, times = fingerprints(tmp_path), path.stat()
    path.write_text("longer")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprints(tmp_path)[0] != before[0]


def test_the_store_is_no_part_of_the_landing_folder(tmp_path, monkeypatch):
    """A store inside a user's folder holds no `.db` and no `.jsonl` of its own."""
    inbox = tmp_path / "inbox"
    write_database(inbox / "ada" / "requests.db", [recorded("m1")])
    write_transcript(inbox / "ada", "s1", [("m1", 0)])
    store = open_store(inbox / "ada" / "store", monkeypatch)
    bring_up_to_date(store, inbox)
    assert isinstance(store, Store)
    assert list(discover(inbox).databases) == ["ada/requests"]


# --- Logs -------------------------------------------------------------------------------------------------------------

PAIR = '{"request":{"timestamp":1,"body":{"messages":[]}},"response":null}\n'


def make_logs(root, *names):
    for name in names:
        make(root, name).joinpath(name).write_text(PAIR)
    return root


def test_logs_lie_anywhere_but_in_projects(tmp_path):
    make(tmp_path, "ada/history.jsonl", "ada/requests.db", "ada/projects/p/s.jsonl")
    make_logs(tmp_path, "ada/.claude-trace/log-1.jsonl", "ada/requests.jsonl", "ada/projects/p/t.jsonl", "lost.jsonl")
    make_logs(tmp_path, "ada/deep/projects/log.jsonl")
    landing = discover(tmp_path)
    assert {key: file.recorded_by for key, file in landing.databases.items()} == {
        "ada/requests": "claude_code_proxy",
        "ada/%2Eclaude-trace/log-1.jsonl": "claude_trace",
        "ada/deep/projects/log.jsonl": "claude_trace",
        "ada/requests.jsonl": "claude_trace",
    }
    assert [t.source for t in landing.transcripts["ada"].files] == ["ada/projects/p/s.jsonl", "ada/projects/p/t.jsonl"]
    assert reasons(landing) == [("lost.jsonl", "no_user_folder")]


def test_direct_logs(tmp_path):
    make(tmp_path, "folder/s.jsonl", "t.jsonl")
    make_logs(tmp_path, "folder/deep/log.jsonl", "my log.jsonl")
    landing = direct([tmp_path / "folder", tmp_path / "my log.jsonl", tmp_path / "t.jsonl"])
    assert list(landing.databases) == ["local/deep/log.jsonl", "local/my%20log.jsonl"]
    assert [t.source for t in landing.transcripts["local"].files] == [
        "local/folder/s.jsonl",
        f"local/{tmp_path.name}/t.jsonl",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads any file")
def test_a_file_that_can_not_be_looked_into_is_told(tmp_path):
    make_logs(tmp_path, "ada/log.jsonl").joinpath("ada/log.jsonl").chmod(0)
    assert reasons(discover(tmp_path)) == [("log.jsonl", "unreadable_file")]


def test_a_log_that_grows_is_read_again(tmp_path):
    path = make_logs(tmp_path, "ada/log.jsonl") / "ada" / "log.jsonl"
    before = discover(tmp_path).databases["ada/log.jsonl"].fingerprint
    path.write_text(PAIR * 2)
    assert discover(tmp_path).databases["ada/log.jsonl"].fingerprint != before


def test_har_files_are_recordings(tmp_path):
    for name in ("ada/x.har", "ada/deep/y.har", "ada/projects/z.har", "given.json"):
        make_har(tmp_path / name, [])
    landing = discover(tmp_path)
    assert {key: file.recorded_by for key, file in landing.databases.items()} == {
        "ada/x.har": "har",
        "ada/deep/y.har": "har",
    }
    make_har(tmp_path / "lost.har", [])
    assert reasons(discover(tmp_path)) == [("lost.har", "no_user_folder")]
    given = direct([tmp_path / "given.json", tmp_path / "lost.har", tmp_path / "ada"])
    assert {key: file.recorded_by for key, file in given.databases.items()} == dict.fromkeys(
        ["local/given.json", "local/lost.har", "local/deep/y.har", "local/projects/z.har", "local/x.har"], "har"
    )
