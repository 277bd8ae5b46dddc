"""What is relied upon, of an S3 server and of obstore's own memory."""

from __future__ import annotations

import pytest

from kv_pipeline.errors import StoreError, UsageError
from kv_pipeline.remote.objects import Objects
from kv_pipeline.remote.url import location
from kv_pipeline_tests.s3 import SECRET

pytest.importorskip("obstore", reason="pip install 'kv-pipeline[objects]'")


@pytest.fixture(params=["memory", "s3"])
def objects(request):
    if request.param == "s3":
        return Objects.open(request.getfixturevalue("machines").at("deep/er"))
    from obstore.store import MemoryStore

    return Objects(location("s3://bucket/memory"), MemoryStore())


def test_only_one_of_two_makes_an_object(objects):
    first = objects.put_if("a", b"1", None)
    assert first is not None
    assert objects.put_if("a", b"2", None) is None
    assert objects.read("a") == (b"1", first)


def test_only_what_was_seen_is_replaced(objects):
    first = objects.put_if("a", b"1", None)
    second = objects.put_if("a", b"2", first)
    assert objects.put_if("a", b"3", first) is None
    assert objects.read("a") == (b"2", second)


def test_what_is_gone_is_not_replaced(objects):
    first = objects.put_if("a", b"1", None)
    objects.delete("a")
    assert objects.put_if("a", b"2", first) is None
    assert objects.read("a") is None


def test_files_come_and_go_and_are_known_by_their_etags(objects, tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 11_000_000)  # in parts
    etag = objects.put("folder/big", tmp_path / "big")
    assert objects.list()["folder/big"] == (etag, 11_000_000)
    assert objects.download("folder/big", tmp_path / "copy") == etag
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "big").read_bytes()
    assert (tmp_path / "copy").stat().st_mode & 0o077 == 0
    assert objects.beginning("folder/big", 10) == b"x" * 10
    objects.delete("folder/big")
    objects.delete("folder/big")
    assert objects.list() == {}
    assert objects.download("folder/big", tmp_path / "nothing") is None
    assert (objects.beginning("folder/big", 10), (tmp_path / "nothing").exists()) == (b"", False)


def test_a_bucket_that_does_not_exist(machines):
    with pytest.raises(UsageError, match="There is no bucket as in s3://nowhere/x"):
        Objects.open(location("s3://nowhere/x")).list()


def test_nobody_listens(machines, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"can't be reached\. Check AWS_ENDPOINT_URL"):
        Objects.open(machines.at("x")).list()


def test_credentials_that_are_refused_stay_unsaid(machines):
    with machines.bucket.server.checking_credentials(), pytest.raises(StoreError, match="access was refused") as caught:
        Objects.open(machines.at("x")).list()
    assert SECRET not in str(caught.value)
    assert "tester" not in str(caught.value)


@pytest.mark.parametrize("name", ["mallory/../../x.db", "mallory//x.db", "mallory/\x01.db"])
def test_a_name_that_is_no_path_costs_its_own_folder_only(machines, name):
    machines.bucket.put(f"inbox/{name}", b"x")
    machines.bucket.put("inbox/mallory/good/y.db", b"x")
    machines.bucket.put("inbox/ada/x.db", b"x")
    objects = Objects.open(machines.at("inbox"))
    with pytest.raises(StoreError, match="name of an object there can't be used"):
        objects.list()
    found, left_out = objects.list_tolerantly()
    assert "ada/x.db" in found
    assert left_out == ["mallory"]
