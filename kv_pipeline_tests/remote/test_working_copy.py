from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager

import pytest

from kv_pipeline.errors import StoreError
from kv_pipeline.remote.url import location

pytest.importorskip("obstore", reason="pip install 'kv-pipeline[objects]'")

from obstore.store import MemoryStore

from kv_pipeline.remote import working_copy
from kv_pipeline.remote.lease import LEASE, Lease, Times
from kv_pipeline.remote.objects import Objects
from kv_pipeline.remote.working_copy import WorkingCopy

URL = location("s3://bucket/store")
TIMES = Times(expire_s=0.3, renew_s=1000, poll_s=0.02)
TABLE, STATE = "traces/ada/s.parquet", "state/traces.json"


class Recorded(Objects):
    """Objects that say what was asked of them, and fail from a write on."""

    fails_at = None

    def __init__(self, store):
        super().__init__(URL, store)
        self.downloads, self.writes = [], []

    def download(self, name, path):
        self.downloads.append(name)
        return super().download(name, path)

    def put(self, name, path):
        self._write(f"put {name}")
        return super().put(name, path)

    def delete(self, name):
        self._write(f"delete {name}")
        super().delete(name)

    def _write(self, what):
        if len(self.writes) == self.fails_at:
            raise StoreError("the network is gone")
        self.writes.append(what)


@pytest.fixture
def bucket():
    return MemoryStore()


@pytest.fixture
def machine(bucket, tmp_path):
    """Makes a machine's working copy of the same store."""

    def make(name="one", times=TIMES):
        (tmp_path / name).mkdir(exist_ok=True)
        copy = WorkingCopy(tmp_path / name, Recorded(bucket), times)
        (copy.root / "writer.lock").touch()
        return copy

    return make


def write(copy, name, content="x"):
    path = copy.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(".tmp-1-new")
    temporary.write_text(content)
    temporary.replace(path)


def published(copy, **contents):
    with copy.writing():
        for name, content in contents.items():
            write(copy, name, content)
    return copy


def names(bucket):
    return sorted(meta["path"] for part in bucket.list() for meta in part if meta["path"] != LEASE)


@contextmanager
def other_process_writing(copy):
    with (copy.root / "writer.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_what_one_publishes_another_has_and_fetches_when_it_is_asked_for(machine):
    published(machine("one"), **{TABLE: "table", STATE: "{}", "store.json": "{}"})
    two = machine("two")
    two.refresh()
    assert (two.root / "store.json").exists()
    assert (two.root / STATE).exists()
    assert not (two.root / TABLE).exists()
    assert (two.lacks(TABLE), two.unfetched("traces"), two.unfetched("trace")) == (True, [TABLE], [])
    two.fetch([TABLE, "traces/ada/unknown.parquet"])
    assert (two.root / TABLE).read_text() == "table"
    assert (two.lacks(TABLE), two.unfetched("")) == (False, [])
    two.refresh()
    two.fetch([TABLE])
    assert sorted(two._objects.downloads) == ["state/traces.json", "store.json", TABLE]


def test_only_the_store_is_published(machine, bucket):
    of_this_machine = ["lock", "writer.lock", "session", "verified.json", "dagster/dagster.yaml", "dagster/x.parquet",
                       "state/locks/0a", "traces/.tmp-1-x.parquet", ".tmp-1-x/copy.db", "notes.txt"]  # fmt: skip
    of_the_store = [TABLE, STATE, "quarantine/traces/x.parquet", "reports/index.html", "salt", "store.json"]
    copy = machine()
    with copy.writing():
        for name in [*of_this_machine, *of_the_store]:
            path = copy.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    assert names(bucket) == sorted(of_the_store)


@pytest.mark.parametrize(
    "name",
    ["dagster/dagster.yaml", "writer.lock", "state/locks/x.json", "objects.sqlite", ".tmp-1-x/a.parquet", "x.py"],
)
def test_what_somebody_plants_in_the_bucket_is_not_fetched(machine, bucket, name):
    bucket.put(name, b"planted")
    copy = machine()
    copy.refresh()
    copy.fetch_all()
    assert copy._objects.downloads == []


def test_results_are_there_before_state_and_settings_come_last(machine):
    copy = published(machine(), **{STATE: "1", "traces/gone.parquet": "x", "state/old.json": "x"})
    copy._objects.writes.clear()
    with copy.writing():
        write(copy, "store.json")
        write(copy, "state/b.json")
        write(copy, STATE, "2")
        write(copy, TABLE)
        write(copy, "salt")
        (copy.root / "traces/gone.parquet").unlink()
        (copy.root / "state/old.json").unlink()
    assert copy._objects.writes == [
        f"put {TABLE}", "delete traces/gone.parquet", "put state/b.json", f"put {STATE}", "delete state/old.json",
        "put salt", "put store.json",
    ]  # fmt: skip


@pytest.mark.parametrize("fails_at", range(4))
def test_what_could_not_be_published_is_done_again(machine, bucket, fails_at):
    copy = published(machine(), **{TABLE: "old", STATE: "old", "store.json": "{}"})
    copy._objects.writes.clear()
    copy._objects.fails_at = fails_at
    with pytest.raises(StoreError, match="network"), copy.writing():
        for name in (TABLE, "traces/new.parquet", STATE, "store.json"):
            write(copy, name, "new")
    there = {name: bytes(bucket.get(name).bytes()) for name in names(bucket)}
    assert there[STATE] == b"old" or there[TABLE] == b"new"
    copy.refresh()
    copy.fetch_all()
    assert {name: (copy.root / name).read_bytes() for name in there} == there
    assert (copy.root / "traces/new.parquet").exists() == ("traces/new.parquet" in there)


def test_what_was_never_published_is_dropped(machine):
    copy = published(machine(), **{TABLE: "published"})
    write(copy, TABLE, "not published")
    write(copy, "traces/other.parquet", "not published")
    copy.refresh()
    assert not (copy.root / "traces/other.parquet").exists()
    copy.fetch([TABLE])
    assert (copy.root / TABLE).read_text() == "published"


def test_a_reader_leaves_the_work_of_a_process_beside_it_alone(machine):
    copy = published(machine(), **{TABLE: "published", "store.json": "{}"})
    write(copy, TABLE, "being written")
    with other_process_writing(copy):
        copy.refresh()
        copy.fetch_all()
    assert (copy.root / TABLE).read_text() == "being written"


def test_a_reader_does_not_bring_back_what_a_process_beside_it_wrote_or_removed(machine):
    published(machine("one"), **{TABLE: "old", "traces/gone.parquet": "x"})
    writer, reader = machine("two"), machine("two")
    writer.refresh()
    write(writer, TABLE, "new")
    writer.drop("traces/gone.parquet")
    reader.fetch([TABLE, "traces/gone.parquet"])
    assert (writer.root / TABLE).read_text() == "new"
    assert not (writer.root / "traces/gone.parquet").exists()
    assert list(writer.root.glob(".tmp-*")) == []


def test_a_first_reader_beside_a_process_that_is_waiting_sees_the_store(machine):
    published(machine("one"), **{"store.json": "{}"})
    two = machine("two")
    with other_process_writing(two):
        two.refresh()
    assert (two.root / "store.json").exists()


def test_what_was_never_fetched_can_be_removed(machine, bucket):
    published(machine("one"), **{TABLE: "x", STATE: "x"})
    two = machine("two")
    with two.writing():
        two.drop(TABLE)
        assert not two.lacks(TABLE)
    assert names(bucket) == [STATE]


def test_an_object_that_was_replaced_after_it_was_listed_is_read_as_it_is_now(machine):
    one = published(machine("one"), **{TABLE: "old"})
    two = machine("two")
    two.refresh()
    published(one, **{TABLE: "new"})
    two.fetch([TABLE])
    assert (two.root / TABLE).read_text() == "new"
    two._objects.downloads.clear()
    two.refresh()
    two.fetch([TABLE])
    assert two._objects.downloads == []


def test_an_object_that_was_removed_after_it_was_listed_is_missing(machine):
    one = published(machine("one"), **{TABLE: "old"})
    two = machine("two")
    two.refresh()
    with one.writing():
        (one.root / TABLE).unlink()
    two.fetch([TABLE])
    assert (two.lacks(TABLE), (two.root / TABLE).exists()) == (False, False)


def test_changes_and_removals_of_others_arrive(machine):
    two = published(machine("two"), **{TABLE: "old", "traces/gone.parquet": "x", STATE: "old"})
    one = machine("one")
    with one.writing():
        one.fetch_all()
        write(one, TABLE, "new")
        write(one, STATE, "new")
        (one.root / "traces/gone.parquet").unlink()
    two.refresh()
    assert not (two.root / "traces/gone.parquet").exists()
    assert (two.root / STATE).read_text() == "new"
    two.fetch([TABLE])
    assert (two.root / TABLE).read_text() == "new"


def test_nothing_is_published_without_the_lease(machine, bucket):
    copy = machine()
    with pytest.raises(StoreError, match="took over the store"), copy.writing():
        write(copy, TABLE)
        with Lease(copy._objects, "somebody else", TIMES).held():
            copy.publish()
    assert names(bucket) == []


def test_a_lease_lost_while_publishing_stops_it(machine, bucket, monkeypatch):
    copy = machine()
    lost = []
    put = Recorded.put

    def losing(objects, name, path):
        if not lost:
            lost.append(name)
            with Lease(objects, "somebody else", TIMES).held(), pytest.raises(StoreError):
                copy._lease.renew()  # as its thread does all the time
        return put(objects, name, path)

    monkeypatch.setattr(Recorded, "put", losing)
    with pytest.raises(StoreError, match="took over the store"), copy.writing():
        write(copy, "state/a.json")
        write(copy, "state/b.json")
    assert names(bucket) == ["state/a.json"]


def test_nothing_that_did_not_change_is_published(machine):
    copy = published(machine(), **{TABLE: "x", STATE: "x"})
    copy._objects.writes.clear()
    with copy.writing():
        copy.fetch_all()
    assert copy._objects.writes == []


def test_long_runs_publish_now_and_then(machine, bucket, monkeypatch):
    copy = machine()
    with copy.writing():
        write(copy, TABLE)
        copy.publish_if_due()
        assert names(bucket) == []
        monkeypatch.setattr(working_copy, "PUBLISH_INTERVAL_S", 0)
        copy.publish_if_due()
        assert names(bucket) == [TABLE]


def test_work_is_published_after_an_error(machine, bucket):
    copy = machine()
    with pytest.raises(ZeroDivisionError), copy.writing():
        write(copy, TABLE)
        raise ZeroDivisionError
    assert names(bucket) == [TABLE]


def test_a_damaged_file_is_fetched_again_unless_it_is_newer(machine):
    copy = published(machine(), **{TABLE: "sound"})
    path = copy.root / TABLE
    before = path.stat()
    path.write_text("rotte")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert copy.restore(path)
    assert path.read_text() == "sound"
    write(copy, TABLE, "newer")
    assert not copy.restore(path)
    assert path.read_text() == "newer"


def test_an_index_that_can_not_be_read_is_told(machine):
    copy = machine()
    (copy.root / "objects.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="delete its folder: it is a copy"):
        copy.refresh()
