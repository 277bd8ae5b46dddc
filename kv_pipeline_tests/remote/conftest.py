"""A server that speaks S3, and machines that use it: each has a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kv_pipeline.remote.url import Location, location
from kv_pipeline_tests.s3 import Bucket, Server, serving

EXAMPLE = Path("data/example").resolve()


class Machines:
    """Makes this process one machine or another.

    Args:
        bucket: What they share.
        folder: Where their caches are.
        monkeypatch: Sets their environment.
    """

    def __init__(self, bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bucket, self._folder, self._monkeypatch = bucket, folder, monkeypatch
        for name, value in bucket.server.environment.items():
            monkeypatch.setenv(name, value)
        self.use("first")

    def use(self, name: str) -> Path:
        """Be a machine from now on; returns its cache."""
        cache = self._folder / name
        self._monkeypatch.setenv("KV_PIPELINE_CACHE", str(cache))
        return cache

    def at(self, prefix: str) -> Location:
        """A prefix of the bucket."""
        return location(self.bucket.url(prefix))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def machines(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(server.bucket(), tmp_path / "machines", monkeypatch)
