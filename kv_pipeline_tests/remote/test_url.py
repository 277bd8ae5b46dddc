from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.landing import discover
from kv_pipeline.remote.folder import folder_of
from kv_pipeline.remote.url import cache_of, location, refuse_overlap


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("data/store", Path("data/store")),
        ("file:///srv/kv%20store", Path("/srv/kv store")),
        ("s3://bucket/kv-store/", "s3://bucket/kv-store"),
        ("s3://bucket", "s3://bucket"),
        ("gs://bucket/a/b", "gs://bucket/a/b"),
        ("az://account/container/a", "az://account/container/a"),
    ],
)
def test_paths_and_urls(text, found):
    assert location(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/x", "ftp:// are not known. There are: s3://"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/x?sig=hush-hush", "holds no credentials"),
        ("s3://id:hush-hush@bucket/x", "holds no credentials"),
    ],
)
def test_urls_that_can_not_be_used_are_told_without_secrets(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        location(text)
    assert "hush-hush" not in str(caught.value)


def test_a_cache_is_of_one_url_and_endpoint_and_of_one_user(tmp_path, monkeypatch):
    monkeypatch.setenv("KV_PIPELINE_CACHE", str(tmp_path / "cache"))
    folders = {cache_of(location(url)) for url in ("s3://a/x", "s3://a/y")}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    folders.add(cache_of(location("s3://a/x")))
    assert len(folders) == 3
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_a_cache_that_others_can_get_into_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("KV_PIPELINE_CACHE", str(tmp_path))
    cache_of(location("s3://a/x")).chmod(0o755)
    with pytest.raises(UsageError, match="is not a folder of this user alone"):
        cache_of(location("s3://a/x"))


@pytest.mark.parametrize(
    ("inbox", "store"), [("s3://b", "s3://b/kv"), ("s3://b/kv/inbox", "s3://b/kv"), ("s3://b/x", "s3://b/x")]
)
def test_a_store_does_not_lie_in_a_landing_folder(inbox, store):
    with pytest.raises(UsageError, match="lie in one another"):
        refuse_overlap(location(inbox), location(store))


def test_neighbours_do_not_overlap():
    refuse_overlap(location("s3://b/kv"), location("s3://b/kv-store"))
    refuse_overlap(location("data"), location("s3://b/kv"))


@pytest.mark.parametrize("use", [folder_of, discover])
def test_without_the_packages_it_is_said_which(monkeypatch, use):
    monkeypatch.setitem(sys.modules, "obstore", None)  # as Python knows what is not installed
    with pytest.raises(UsageError, match=r"pip install 'kv-pipeline\[objects\]'"):
        use(location("s3://bucket/x"))
