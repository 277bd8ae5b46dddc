"""A server that speaks S3, in a process of its own, and buckets on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

_PATIENCE_S = 60
SECRET = "an-invented-secret"  # noqa: S105


@dataclass(frozen=True)
class Server:
    """A server on this machine.

    Attributes:
        port: Where it listens.
    """

    port: int

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def request(self, method: str, path: str, content: bytes | None = None) -> tuple[int, bytes]:
        """Ask the server something; nothing is signed."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, content, {"x-amz-acl": "public-read-write"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def bucket(self) -> Bucket:
        """A new bucket."""
        name = f"bucket-{uuid.uuid4().hex}"
        assert self.request("PUT", f"/{name}")[0] == 200
        return Bucket(self, name)

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Refuse everybody, as nobody has an account."""
        self.request("POST", "/moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self.request("POST", "/moto-api/reset-auth", b"1000000000")


@dataclass(frozen=True)
class Bucket:
    """A bucket; what is in it is named as the bytes that it is made of."""

    server: Server
    name: str

    def url(self, prefix: str) -> str:
        """URL of a prefix."""
        return f"s3://{self.name}/{prefix}"

    def put(self, name: str, content: bytes) -> None:
        """Write an object by any name."""
        assert self.server.request("PUT", f"/{self.name}/{quote(name)}", content)[0] == 200, name

    def get(self, name: str) -> bytes:
        """An object's content."""
        return bytes(self._opened().get(name).bytes())

    def delete(self, name: str) -> None:
        """Delete an object."""
        self._opened().delete(name)

    def names(self, prefix: str) -> list[str]:
        """Names of objects below a prefix, without it."""
        found = (meta["path"] for part in self._opened().list(prefix) for meta in part)
        return sorted(name.removeprefix(f"{prefix}/") for name in found)

    def _opened(self) -> Any:
        from obstore.store import S3Store

        options = {name.lower(): value for name, value in self.server.environment.items()}
        return S3Store(self.name, config=options)

    def upload(self, folder: Path, prefix: str) -> None:
        """Write all files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def contents(self, prefix: str) -> dict[str, bytes]:
        """All objects below a prefix."""
        return {name: self.get(f"{prefix}/{name}") for name in self.names(prefix)}


@contextmanager
def serving() -> Iterator[Server]:
    """A server until the end."""
    for module in ("obstore", "moto", "flask", "flask_cors"):
        pytest.importorskip(module, reason="pip install 'kv-pipeline[dev]' for a server that speaks S3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as process:
        try:
            _wait(process, port)
            yield Server(port)
        finally:
            process.kill()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < _PATIENCE_S:
        assert process.poll() is None, "the server did not start"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server does not answer")
