"""The recording proxy of one user, and the demo API behind it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from random import Random

from kv_pipeline.demo.prompt_cache import Prompt, PromptCache, Usage
from kv_pipeline.demo.responses import (
    Exchange,
    Reply,
    stored_message,
    stored_overload,
    stored_stream,
    stream_lines,
)
from kv_pipeline.demo.wire import Json, go
from kv_pipeline.demo.wording import base62_of

SCHEMA = """\
CREATE TABLE requests (
\t\tid TEXT PRIMARY KEY,
\t\ttimestamp DATETIME DEFAULT CURRENT_TIMESTAMP,
\t\tmethod TEXT NOT NULL,
\t\tendpoint TEXT NOT NULL,
\t\theaders TEXT NOT NULL,
\t\tbody TEXT NOT NULL,
\t\tuser_agent TEXT,
\t\tcontent_type TEXT,
\t\tprompt_grade TEXT,
\t\tresponse TEXT,
\t\tmodel TEXT,
\t\toriginal_model TEXT,
\t\trouted_model TEXT,
\t\tcreated_at DATETIME DEFAULT CURRENT_TIMESTAMP
\t);
CREATE INDEX idx_timestamp ON requests(timestamp DESC);
CREATE INDEX idx_endpoint ON requests(endpoint);
CREATE INDEX idx_model ON requests(model);
"""
"""What the proxy creates, character for character."""

_BATCH_CHARS = 8_000_000
_OVERLOAD_MS = 40
_STATIC_HEADERS = {
    "Accept": ["application/json"],
    "Anthropic-Version": ["2023-06-01"],
    "Content-Type": ["application/json"],
}

Row = tuple[str | None, ...]


class RequestsDatabase:
    """One `requests.db`, written in batches so that memory stays flat."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._connection = sqlite3.connect(path)
        self._connection.executescript("PRAGMA journal_mode = delete; PRAGMA synchronous = off;" + SCHEMA)
        self._batch: list[Row] = []
        self._batch_chars = 0

    def add(self, row: Row) -> None:
        """Append one row."""
        self.rows += 1
        self._batch.append(row)
        self._batch_chars += sum(len(value) for value in row if value)
        if self._batch_chars > _BATCH_CHARS:
            self._flush()

    def close(self) -> None:
        """Write what is left; no journal or write-ahead log stays behind."""
        self._flush()
        self._connection.close()

    def _flush(self) -> None:
        with self._connection:
            marks = ", ".join("?" * 14)
            self._connection.executemany(f"INSERT INTO requests VALUES ({marks})", self._batch)
        self._batch.clear()
        self._batch_chars = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request on its way to the API.

    Attributes:
        model: Model id.
        body: Its JSON as the proxy stores it.
        prompt: Its prefix as the prompt cache sees it.
        user_agent: The client's name and version.
        headers: Headers beyond the usual ones.
    """

    model: str
    body: str
    prompt: Prompt
    user_agent: str
    headers: Json = field(default_factory=dict)


class Proxy:
    """Forwards requests to the demo API and records them.

    Args:
        folder: The user's folder in the landing folder.
        rng: Where ids and latencies come from.
        utc_offset_hours: Of the machine; the proxy stamps local time.
        is_fixed: Whether it forwards streams intact. The older one loses the end of a message.
    """

    def __init__(self, folder: Path, rng: Random, utc_offset_hours: int, *, is_fixed: bool) -> None:
        self.current = "requests.db"
        self.row_counts: dict[str, int] = {}
        self._folder, self._rng, self._is_fixed = folder, rng, is_fixed
        self._zone = timezone(timedelta(hours=utc_offset_hours))
        self._cache = PromptCache()
        self._database = RequestsDatabase(folder / self.current)

    def rotate(self) -> str:
        """Move what was recorded so far aside, begin a new database, and return the old one's new name."""
        self._close_current()
        aside = f"requests-{len(self.row_counts)}.db"
        (self._folder / self.current).rename(self._folder / aside)
        self.row_counts[aside] = self.row_counts.pop(self.current)
        self._database = RequestsDatabase(self._folder / self.current)
        return aside

    def close(self) -> None:
        """Finish the current database."""
        self._close_current()

    def stream(self, request: Request, reply: Reply, at_ms: int, *, is_aborted: bool = False) -> Exchange:
        """A streaming request."""
        exchange = self._answer(request, reply, at_ms)
        lines = stream_lines(exchange, reply, is_aborted=is_aborted)
        keeps_stop = self._is_fixed and not is_aborted
        self._record(request, exchange, stored_stream(exchange, reply, lines, keeps_stop=keeps_stop))
        return exchange

    def ask(self, request: Request, reply: Reply, at_ms: int) -> Exchange:
        """A non-streaming request."""
        exchange = self._answer(request, reply, at_ms)
        self._record(request, exchange, stored_message(exchange, reply))
        return exchange

    def refuse(self, request: Request, at_ms: int) -> Exchange:
        """A request that the API is too busy for."""
        nothing = Usage(0, 0, 0, 0, 0)
        exchange = Exchange("", "", request.model, nothing, at_ms, at_ms + _OVERLOAD_MS, at_ms + _OVERLOAD_MS)
        self._record(request, exchange, stored_overload(exchange))
        return exchange

    def _answer(self, request: Request, reply: Reply, at_ms: int) -> Exchange:
        """Bill a request; time to the first byte grows with what the cache does not hold."""
        prompt = request.prompt
        hit = self._cache.hit(prompt, at_ms)
        uncached = prompt.positions[-1].tokens - (prompt.positions[hit].tokens if hit >= 0 else 0)
        first_byte_ms = at_ms + 450 + self._rng.randrange(300) + uncached // 20
        end_ms = first_byte_ms + reply.tokens * self._rng.randrange(9, 16)
        return Exchange(
            message_id=f"msg_01{base62_of(self._rng, 22)}",
            request_id=f"req_011{base62_of(self._rng, 21)}",
            model=request.model,
            usage=self._cache.settle(prompt, hit, at_ms, first_byte_ms, reply.tokens),
            at_ms=at_ms,
            first_byte_ms=first_byte_ms,
            end_ms=end_ms,
        )

    def _record(self, request: Request, exchange: Exchange, response: Json) -> None:
        response["completedAt"] = self._local(exchange.end_ms)
        created_at = datetime.fromtimestamp(exchange.at_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        self._database.add(
            (
                f"{self._rng.getrandbits(64):016x}",
                self._local(exchange.at_ms),
                "POST",
                "/v1/messages",
                go(self._headers(request)),
                request.body,
                request.user_agent,
                "application/json",
                None,
                go(response),
                *([request.model] * 3),
                created_at,
            )
        )

    def _headers(self, request: Request) -> Json:
        """Request headers, sorted as the proxy's map is; the key is a fake and stays one."""
        own = {"User-Agent": [request.user_agent], "X-Api-Key": ["sha256:" + "0" * 64]}
        length = {"Content-Length": [str(len(request.body))]}
        return dict(sorted({**_STATIC_HEADERS, **length, **own, **request.headers}.items()))

    def _local(self, at_ms: int) -> str:
        """Local time to the second, with `Z` for UTC, as Go prints it."""
        local = datetime.fromtimestamp(at_ms // 1000, self._zone)
        return local.isoformat().replace("+00:00", "Z")

    def _close_current(self) -> None:
        self._database.close()
        self.row_counts[self.current] = self._database.rows
