"""Recorded traffic sent again through a real mitmproxy, which writes it down as a HAR file.

A client sends each recorded request through `mitmdump` to a server that answers as was recorded; all on 127.0.0.1.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

VARIABLE: Final = "KV_PIPELINE_MITMDUMP"
MITMDUMP: Final = os.environ.get(VARIABLE) or shutil.which("mitmdump")
CREDENTIAL: Final = "sk-ant-oat01-sent-through-mitmproxy"
_OWN_HEADERS: Final = frozenset({"connection", "content-length", "host", "transfer-encoding", "x-api-key"})
_LISTENING: Final = re.compile(r"listening at \S*127\.0\.0\.1:(\d+)")
_TIMEOUT_S: Final = 60


class Recorded(NamedTuple):
    """A request as a proxy recorded it, and its answer; status 0 if there was none."""

    at: datetime
    headers: Mapping[str, str]
    body: bytes
    status: int
    answer_headers: Mapping[str, str]
    answer: bytes

    @property
    def is_stream(self) -> bool:
        return self.answer.startswith(b"data:")


def recorded_in(database: Path) -> list[Recorded]:
    """A proxy database's requests, in order."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as connection:
        rows = connection.execute("SELECT timestamp, headers, body, response FROM requests ORDER BY rowid").fetchall()
    return [_recorded(at, json.loads(headers), body, json.loads(answer or "{}")) for at, headers, body, answer in rows]


def _recorded(at: str, headers: Mapping[str, Any], body: str, response: Mapping[str, Any]) -> Recorded:
    chunks = response.get("streamingChunks")
    answer = "\n\n".join([*chunks, ""]) if chunks else response.get("bodyText") or json.dumps(response.get("body"))
    status, answer_headers = response.get("statusCode", 0), _single(response.get("headers") or {})
    sent_at = datetime.fromisoformat(at)
    return Recorded(sent_at, _single(headers), body.encode(), status, answer_headers, answer.encode())


def _single(headers: Mapping[str, Any]) -> dict[str, str]:
    listed = {name: value if isinstance(value, str) else ", ".join(value) for name, value in headers.items()}
    return {name: value for name, value in listed.items() if name.lower() not in _OWN_HEADERS}


def write_har(path: Path, traffic: Sequence[Recorded], scratch: Path) -> Path:
    """Send requests one after the other through mitmdump; credentials go along in every place that can hold one."""
    with _server(traffic) as port, _mitmdump(path, port, scratch) as proxy_port:
        for sent in traffic:
            _send(proxy_port, sent)
    return path


def put_back(path: Path, traffic: Sequence[Recorded]) -> list[datetime]:
    """Give the entries the times at which they were recorded; returns those that mitmproxy wrote."""
    document = json.loads(path.read_bytes())
    entries = document["log"]["entries"]
    written = [datetime.fromisoformat(entry["startedDateTime"]) for entry in entries]
    for entry, sent in zip(entries, traffic, strict=True):
        entry["startedDateTime"] = sent.at.isoformat()
    path.write_text(json.dumps(document))
    return written


def _send(port: int, sent: Recorded) -> None:
    headers = {**sent.headers, "Content-Type": "application/json", "Accept-Encoding": "gzip"}
    secrets = {"X-Api-Key": CREDENTIAL, "Authorization": f"Bearer {CREDENTIAL}", "Cookie": f"session={CREDENTIAL}"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)) as connection:
        connection.request("POST", f"/v1/messages?beta=true&key={CREDENTIAL}", sent.body, headers | secrets)
        connection.getresponse().read()


@contextmanager
def _server(traffic: Sequence[Recorded]) -> Iterator[int]:
    """Answers in the order in which they were recorded: streams in chunks, others compressed."""
    answers = iter(traffic)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            sent = next(answers)
            if not sent.status:
                self.close_connection = True
                return
            self.send_response_only(sent.status)
            for name, value in sent.answer_headers.items():
                self.send_header(name, value)
            self.send_header("Set-Cookie", f"session={CREDENTIAL}")
            self._send_stream(sent.answer) if sent.is_stream else self._send_packed(sent.answer)

        def _send_stream(self, answer: bytes) -> None:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in answer.splitlines(keepends=True):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        def _send_packed(self, answer: bytes) -> None:
            packed = gzip.compress(answer)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(packed)))
            self.end_headers()
            self.wfile.write(packed)

        def log_message(self, *args: object) -> None:
            """Nothing: the server's log is of no use."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _mitmdump(path: Path, port: int, scratch: Path) -> Iterator[int]:
    """A reverse proxy in front of the server, until it has written what it saw."""
    command = [
        str(MITMDUMP), "--mode", f"reverse:http://127.0.0.1:{port}", "--listen-host", "127.0.0.1", "--listen-port", "0",
        "--set", f"confdir={scratch}", "--set", f"hardump={path}", "--set", "flow_detail=0",
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    told = scratch / "mitmdump.log"  # a pipe that nobody empties would fill up
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": ""}
    with told.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as run:
        try:
            yield _port(told)
            run.send_signal(signal.SIGINT)
            run.wait(_TIMEOUT_S)
        finally:
            run.kill()


def _port(told: Path) -> int:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline_s:
        if found := _LISTENING.search(told.read_text()):
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(f"mitmdump did not start: {told.read_text()}")
