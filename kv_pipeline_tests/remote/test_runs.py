"""The commands, with landing folder and store in a bucket."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kv_pipeline.remote.objects import Objects
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store
from kv_pipeline_tests.cli.commands import Command
from kv_pipeline_tests.remote.conftest import EXAMPLE, Machines
from kv_pipeline_tests.s3 import SECRET, Bucket, Server

OF_LANDING = {"state/raw_requests.json", "state/conversation_index.json", "state/cache_report.json"}
"""Fingerprints of files know their times, those of objects their etags."""
GRACE = "grace/07cb66fa-6445-4d90-b83a-3c92c30216dd"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's store in a folder, with the salt that the bucket's store gets."""
    store = Store.open(tmp_path_factory.mktemp("local") / "store")
    bring_up_to_date(store, Inputs(EXAMPLE))
    return store.root


def make(bucket: Bucket, folder: Path) -> Bucket:
    """Have one machine make a store of what is in the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        machines = Machines(bucket, folder, patch)
        bring_up_to_date(Store.open(machines.at("kv")), Inputs(machines.at("inbox")))
    return bucket


@pytest.fixture(scope="module")
def made(server: Server, local: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """A bucket with the example and a store made of it by one machine; not to be changed."""
    bucket = server.bucket()
    bucket.upload(EXAMPLE, "inbox")
    bucket.put("kv/salt", (local / "salt").read_bytes())
    return make(bucket, tmp_path_factory.mktemp("machines"))


@pytest.fixture(scope="module")
def small(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """The same of one user."""
    bucket = server.bucket()
    bucket.upload(EXAMPLE / "grace", "inbox/grace")
    return make(bucket, tmp_path_factory.mktemp("machines"))


def copy_of(bucket: Bucket) -> Bucket:
    copy = bucket.server.bucket()
    for prefix in ("inbox", "kv"):
        for name, content in bucket.contents(prefix).items():
            copy.put(f"{prefix}/{name}", content)
    return copy


@pytest.fixture
def copied(made: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """A bucket of one's own with the same in it."""
    return Machines(copy_of(made), tmp_path / "machines", monkeypatch)


@pytest.fixture
def copied_small(small: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(copy_of(small), tmp_path / "machines", monkeypatch)


def at(machines: Machines, *, inbox: bool = True) -> list[str]:
    """Options of a command."""
    return ["--store", machines.bucket.url("kv"), *(["--inbox", machines.bucket.url("inbox")] if inbox else [])]


def tables(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in contents.items() if name.endswith(".parquet")}


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_store_in_a_bucket_is_what_one_in_a_folder_is(made, local):
    found, expected = made.contents("kv"), files(local)
    assert tables(found) == tables(expected)
    states = [name for name in found if name.startswith("state/")]
    assert {name: found[name] for name in states if name not in OF_LANDING} == {
        name: expected[name] for name in states if name not in OF_LANDING
    }
    assert {json.loads(found[name]).keys() == json.loads(expected[name]).keys() for name in OF_LANDING} == {True}
    others = {name for name in found if not name.endswith(".parquet")} - {*states}
    assert others == {"salt", "store.json", "writer.lease"}


def test_nothing_is_done_twice_by_any_machine(copied, cli, monkeypatch):
    before = copied.bucket.contents("kv")
    downloads = []
    download = Objects.download
    monkeypatch.setattr(Objects, "download", lambda *asked: downloads.append(asked[1]) or download(*asked))
    for machine in ("second", "third", "second"):
        copied.use(machine)
        done = cli("run", *at(copied), "--json")
        assert (done.code, done.json["recomputed_partitions"]) == (0, {})
        assert done.json["store"] == copied.bucket.url("kv")
    after = copied.bucket.contents("kv")
    assert {name for name in after if after[name] != before[name]} == {"writer.lease"}
    assert {name.partition("/")[0] for name in downloads} & {"segments", "tokenized_blocks"} == set()
    assert len(downloads) == 2 * len(set(downloads))  # once by either machine


def test_what_grew_is_read_again_by_whichever_machine(copied, cli, tmp_path):
    shutil.copy(EXAMPLE / "grace/requests.db", tmp_path / "grown.db")
    with closing(sqlite3.connect(tmp_path / "grown.db")) as database, database:
        database.execute("DELETE FROM requests WHERE rowid = (SELECT max(rowid) FROM requests)")
    copied.bucket.put("inbox/grace/requests.db", (tmp_path / "grown.db").read_bytes())
    copied.use("second")
    done = cli("run", *at(copied), "--json")
    assert done.json["recomputed_partitions"]["raw_requests"] == 1
    assert done.json["recomputed_partitions"]["traces"] < 8
    copied.use("third")
    assert cli("run", *at(copied), "--json").json["recomputed_partitions"] == {}
    copied.bucket.delete("inbox/grace/requests.db")
    assert cli("run", *at(copied), "--json").json["not_in_landing"] == ["grace/requests"]


def test_reading_commands_read_what_they_need(copied, cli, local, tmp_path):
    cache = copied.use("reader")
    before = copied.bucket.contents("kv")
    assert len(cli("list", *at(copied, inbox=False), "--json").json) == 8
    assert {path.parts[-3] for path in cache.rglob("*.parquet")} & {"segments", "tokenized_blocks"} == set()
    for command in (["validate"], ["monitor"], ["report", "--text"]):
        in_bucket, in_folder = cli(*command, *at(copied, inbox=False)), cli(*command, "--store", local)
        assert in_bucket.out == in_folder.out != ""
    assert cli("export", "--out", tmp_path / "traces", *at(copied, inbox=False)).code == 0
    assert len(list((tmp_path / "traces").glob("*.json"))) == 8
    assert copied.bucket.contents("kv") == before


def test_settings_in_the_environment(copied, cli, monkeypatch):
    monkeypatch.setenv("KV_PIPELINE_STORE", copied.bucket.url("kv"))
    monkeypatch.setenv("KV_PIPELINE_INBOX", copied.bucket.url("inbox"))
    assert cli("run", "--json").json["recomputed_partitions"] == {}


def test_either_may_be_a_folder(copied_small, cli, tmp_path):
    bucket = copied_small.bucket
    before = tables(bucket.contents("kv"))
    done = cli("run", "--inbox", bucket.url("inbox/grace"), "--store", f"file://{tmp_path}/store", "--json")
    assert (done.code, done.json["recomputed_partitions"]["raw_requests"]) == (0, 1)
    assert sorted(tables(files(tmp_path / "store"))) == sorted(before)
    shutil.copytree(EXAMPLE / "grace", tmp_path / "inbox" / "grace")
    done = cli("run", "--inbox", tmp_path / "inbox", "--store", bucket.url("kv"), "--json")
    assert done.json["recomputed_partitions"]["raw_requests"] == 1  # files are known otherwise than objects
    assert tables(bucket.contents("kv")) == before


def test_a_damaged_object_is_set_aside_and_made_again(copied, cli):
    name = f"kv/traces/{GRACE}.parquet"
    good = copied.bucket.get(name)
    copied.bucket.put(name, good[:-1] + b"x")
    copied.use("second")
    done = cli("run", *at(copied), "--verify", "--json")
    assert (done.code, done.json["quarantined"]) == (0, [f"traces/{GRACE}.parquet"])
    assert copied.bucket.get(name) == good
    assert f"quarantine/traces/{GRACE}.parquet" in copied.bucket.names("kv")


def test_content_is_purged_in_the_bucket(copied, cli):
    before = copied.bucket.contents("kv")
    copied.use("second")
    done = cli("purge", *at(copied), "--all", "--user", "grace", "--json")
    assert done.json["databases"] == ["grace/requests"]
    after = copied.bucket.contents("kv")
    changed = {name for name in after if after[name] != before.get(name)} - {"writer.lease"}
    assert changed == {"segments/grace/requests.parquet", "state/purged.json"}
    copied.use("first")
    assert cli("run", *at(copied), "--json").json["recomputed_partitions"] == {}


def test_a_user_is_forgotten_in_the_bucket(copied, cli):
    copied.bucket.put(f"kv/reports/conversations/{GRACE}.html", b"<html>")
    copied.use("second")
    done = cli("forget", "grace", *at(copied), "--json")
    assert (done.code, done.json["is_in_landing"]) == (1, True)
    left = copied.bucket.contents("kv")
    assert [name for name in left if "grace" in name] == []
    assert [name for name, content in left.items() if b"grace/" in content] == []
    copied.use("first")
    assert {row["user_id"] for row in cli("list", *at(copied, inbox=False), "--json").json} == {"ada", "hedy", "linus"}


def test_the_salt_is_replaced_in_the_bucket(copied_small, cli):
    machines = copied_small
    before = machines.bucket.contents("kv")
    machines.use("second")
    done = cli("rotate-salt", *at(machines), "--json")
    assert (done.code, done.json["recomputed_partitions"]["traces"]) == (0, 3)
    after = machines.bucket.contents("kv")
    assert after["salt"] != before["salt"]
    assert "salt.next" not in after
    assert after.keys() == before.keys()
    changed = {name for name in tables(after) if after[name] != before[name]}
    assert {name.partition("/")[0] for name in changed} >= {"segments", "tokenized_blocks"}
    machines.use("first")
    assert cli("run", *at(machines), "--json").json["recomputed_partitions"] == {}


@pytest.mark.parametrize("n_writes", range(3))
def test_a_salt_that_was_half_replaced_is_by_the_next_machine(copied_small, cli, monkeypatch, n_writes):
    """Whatever of the settings was written when the first one died."""
    machines = copied_small
    old = machines.bucket.get("kv/salt")
    written = []
    put = Objects.put

    def dying(objects, name, path):
        written.append(name)
        if len(written) > n_writes:
            raise KeyboardInterrupt
        return put(objects, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "put", dying)
        assert cli("rotate-salt", *at(machines)).code == 130
    machines.use("second")
    store = Store.open(machines.at("kv"))
    assert (store.salt == old) == (n_writes == 0)
    assert bool(store.partitions("segments")) == (n_writes == 0)
    assert "salt.next" not in machines.bucket.names("kv")
    assert Store.open(machines.at("kv")) == store


def test_everything_is_made_again(copied_small, cli):
    before = tables(copied_small.bucket.contents("kv"))
    copied_small.use("second")
    done = cli("run", *at(copied_small), "--rebuild", "--json")
    assert done.json["recomputed_partitions"]["raw_requests"] == 1
    assert tables(copied_small.bucket.contents("kv")) == before


def test_two_who_make_a_store_at_once_have_one_salt(machines, tmp_path):
    machines.bucket.upload(EXAMPLE / "grace", "inbox/grace")
    processes = []
    for name in ("one", "two"):
        environment = os.environ | {"KV_PIPELINE_CACHE": str(tmp_path / name), "KV_PIPELINE_LEASE_S": "20"}
        command = [sys.executable, "-c", "from kv_pipeline.cli import main; main()", "run", *at(machines), "--json"]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [err for _, err in said]
    made = [json.loads(out)["recomputed_partitions"] for out, _ in said]
    assert sorted(len(each) for each in made) == [0, 6]
    machines.use("three")
    assert bring_up_to_date(Store.open(machines.at("kv")), Inputs(machines.at("inbox"))).recomputed == {}


def test_workers_need_a_folder(machines, cli):
    for command in (["run", "--engine", "celery"], ["worker"]):
        done = cli(*command, *at(machines))
        assert done.code == 2
        assert "name a folder that all of them share" in done.err


def test_landing_folder_and_store_are_apart(machines, cli):
    done = cli("run", "--inbox", machines.bucket.url("x"), "--store", machines.bucket.url("x/kv"))
    assert (done.code, machines.bucket.names("x")) == (2, [])


@pytest.mark.parametrize(
    ("variables", "bucket", "code", "message"),
    [
        ({}, "nowhere", 2, "There is no bucket as in s3://nowhere/inbox"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, None, 1, "can't be reached"),
        ({"AWS_ALLOW_HTTP": "false"}, None, 1, "plain http needs AWS_ALLOW_HTTP=true"),
    ],
)
def test_what_does_not_work_is_told_in_a_line(machines, cli, monkeypatch, variables, bucket, code, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = cli("run", "--inbox", f"s3://{bucket or machines.bucket.name}/inbox", "--store", machines.bucket.url("kv"))
    assert (done.code, len(done.err.splitlines())) == (code, 1)
    assert message in done.err


def test_refused_credentials_are_told_in_a_line_without_them(copied, cli):
    with copied.bucket.server.checking_credentials():
        done = cli("list", *at(copied, inbox=False))
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "access was refused" in done.err
    assert SECRET not in done.err
