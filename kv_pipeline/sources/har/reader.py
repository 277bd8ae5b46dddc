"""From a HAR file to rows of raw_requests and segments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl

from kv_pipeline.errors import InputError, Skip
from kv_pipeline.schemas.requests import HAR
from kv_pipeline.sources.anthropic_messages.rows import LEFT_OUT, Facts, Recording, RequestRows, messages_endpoint
from kv_pipeline.sources.har.entries import HarError, entries_of
from kv_pipeline.sources.har.exchange import Exchange
from kv_pipeline.sources.interning import Row

_UNANSWERED: Final = "The request is kept as one without an answer."
_FILE_REMEDY: Final = "Export it again; the entries before are used."


class HarReader:
    """Reads one file.

    Args:
        database_id: Name of the file in the store.
        salt: Secret of the store.
        keep_billing_header: Leave billing headers as they are.
        emit_segments: Receives frames of `SEGMENTS` as the file is read.
    """

    def __init__(
        self,
        database_id: str,
        salt: bytes,
        keep_billing_header: bool,
        emit_segments: Callable[[pl.DataFrame], None],
    ) -> None:
        self._database_id = database_id
        self._maker = RequestRows(database_id, HAR, salt, keep_billing_header, emit_segments)
        self._rows: list[Row] = []
        self._skips: list[Skip] = []
        self._seen: dict[bytes, int] = {}

    def read(self, path: Path) -> Recording:
        """Read every entry; what can't be used is listed, not raised."""
        try:
            self._read(path)
        except HarError as error:
            self._skips.append(Skip(self._database_id, None, error.reason, error.found, _FILE_REMEDY))
        except OSError as error:
            found = f"the file can't be read: {error.strerror}"
            self._skips.append(Skip(self._database_id, None, "unreadable_file", found, "Check its permissions."))
        return Recording(self._maker.frame(self._rows), self._skips)

    def _read(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise OSError(0, "it is no regular file")
        with path.open("rb") as file:
            for number, raw in enumerate(entries_of(file), start=1):
                try:
                    self._entry(number, raw)
                except InputError as error:
                    self._skips.append(Skip.of(error))

    def _entry(self, number: int, raw: bytes) -> None:
        first = self._seen.setdefault(hashlib.blake2b(raw, digest_size=16).digest(), number)
        if first != number:
            found, remedy = f"the entry repeats entry {first}", "It is counted once."
            self._skips.append(Skip(self._database_id, number, "repeated_pair", found, remedy, is_left_out=False))
            return
        try:
            exchange = Exchange(raw)
        except (ValueError, RecursionError) as error:
            raise self._error("broken_entry", number, "the entry is no JSON object") from error
        self._rows.append(self._request(number, exchange))

    def _request(self, number: int, exchange: Exchange) -> Row:
        if not exchange.request:
            raise self._error("no_request", number, "the entry has no request")
        endpoint = messages_endpoint(exchange.url)
        if endpoint is None:
            raise self._error("other_endpoint", number, "the request is not for /v1/messages")
        body = self._maker.parse(exchange.body, number)
        requested_at = self._time(number, exchange)
        parts = self._maker.intern(exchange.body, body, number)
        if exchange.is_response_lost:
            found = "no text of the response was recorded, or none that can be decoded"
            self._skips.append(Skip(self._database_id, number, "no_response_body", found, _UNANSWERED, False))
        facts = Facts(
            row_id=number,
            request_id=exchange.request_id,
            requested_at_utc=requested_at,
            endpoint=endpoint,
            model=None,
            routed_model=None,
            payload_bytes=exchange.payload_bytes,
            session_id=exchange.session_id,
            agent_id=exchange.agent_id,
        )
        return self._maker.row(facts, body, parts, exchange.answer(requested_at))

    def _time(self, number: int, exchange: Exchange) -> datetime:
        try:
            return exchange.requested_at()
        except ValueError as error:
            raise self._error("bad_timestamp", number, "the entry's time can't be read") from error

    def _error(self, reason: str, number: int, found: str) -> InputError:
        return InputError(reason, self._database_id, found, LEFT_OUT, number)
