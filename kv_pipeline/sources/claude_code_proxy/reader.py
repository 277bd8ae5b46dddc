"""From a proxy database to rows of raw_requests and segments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from kv_pipeline.errors import InputError, Skip
from kv_pipeline.schemas.columns import GrowingFrame
from kv_pipeline.schemas.requests import CLAUDE_CODE_PROXY, RAW_REQUESTS
from kv_pipeline.sources.anthropic_messages.answer import Answer
from kv_pipeline.sources.anthropic_messages.rows import LEFT_OUT, MESSAGES_ENDPOINT, Facts, Recording, RequestRows
from kv_pipeline.sources.claude_code_proxy.answer import parse_answer
from kv_pipeline.sources.claude_code_proxy.database import RequestRow, read_rows
from kv_pipeline.sources.interning import Row
from kv_pipeline.sources.times import parse_utc


class DatabaseReader:
    """Reads one database.

    Args:
        database_id: Name of the database in the store.
        salt: Secret of the store.
        keep_billing_header: Leave billing headers as they are.
        emit_segments: Receives frames of `SEGMENTS` as the database is read.
        scratch: Folder for a private copy of the database, should one be needed.
    """

    def __init__(
        self,
        database_id: str,
        salt: bytes,
        keep_billing_header: bool,
        emit_segments: Callable[[pl.DataFrame], None],
        scratch: Path | None = None,
    ) -> None:
        self._database_id = database_id
        self._scratch = scratch
        self._maker = RequestRows(database_id, CLAUDE_CODE_PROXY, salt, keep_billing_header, emit_segments)
        self._skips: list[Skip] = []

    def read(self, path: Path) -> Recording:
        """Read every row; what can't be used is listed, not raised.

        A file that can't be opened yields no rows and one skip; a damaged one the rows before the damage.
        """
        rows = GrowingFrame(RAW_REQUESTS)
        try:
            for row in read_rows(path, self._database_id, self._scratch):
                self._append(rows, row)
            if not rows and not self._skips:
                self._skips.append(_no_rows(self._database_id))
        except InputError as error:
            self._skips.append(Skip.of(error))
        requests = self._maker.frame(rows)
        return Recording(requests, self._skips + _clock_skips(self._database_id, requests))

    def _append(self, rows: GrowingFrame, row: RequestRow | InputError) -> None:
        try:
            if isinstance(row, InputError):
                raise row
            rows.append(self._request(row))
        except InputError as error:
            self._skips.append(Skip.of(error))

    def _request(self, row: RequestRow) -> Row:
        endpoint = _text(row.endpoint) or MESSAGES_ENDPOINT
        if endpoint.partition("?")[0].rstrip("/") != MESSAGES_ENDPOINT:
            raise self._error("other_endpoint", row, "the request is not for /v1/messages")
        body = self._maker.parse(row.body, row.row_id)
        requested_at = self._time(row)
        parts = self._maker.intern(row.body, body, row.row_id)
        facts = Facts(
            row_id=row.row_id,
            request_id=_text(row.id),
            requested_at_utc=requested_at,
            endpoint=endpoint,
            model=_text(row.model),
            routed_model=_text(row.routed_model),
            payload_bytes=len(row.body or b"") + len(row.response or b""),
            session_id=_text(row.session_id) or None,
            agent_id=_text(row.agent_id) or None,
        )
        return self._maker.row(facts, body.rest, parts, self._answer(row))

    def _answer(self, row: RequestRow) -> Answer:
        """The answer; an unreadable one is listed and the request kept as unanswered."""
        try:
            return parse_answer(row.response)
        except (ValueError, RecursionError):
            remedy = "The request is kept as one without an answer."
            found = "the response is not a JSON object (cut off, or an error text)"
            self._skips.append(Skip(self._database_id, row.row_id, "response_not_json", found, remedy, False))
            return Answer()

    def _time(self, row: RequestRow) -> datetime:
        try:
            return parse_utc(_text(row.timestamp) or "")
        except ValueError as error:
            raise self._error("bad_timestamp", row, "the timestamp can't be read") from error

    def _error(self, reason: str, row: RequestRow, found: str) -> InputError:
        return InputError(reason, self._database_id, found, LEFT_OUT, row.row_id)


def _clock_skips(database_id: str, requests: pl.DataFrame) -> list[Skip]:
    """Rows are inserted as requests come, so a time before the row before means that the clock was set back."""
    by = pl.col("requested_at_utc").diff().neg()
    set_back = requests.select("row_id", by=by).filter(pl.col("by") > timedelta())
    remedy = "The row is used; times around it, and the order of requests, may be off."
    found = "its time is {:.0f} s before the row before it"
    return [
        Skip(database_id, row_id, "clock_set_back", found.format(by.total_seconds()), remedy, False)
        for row_id, by in set_back.iter_rows()
    ]


def _no_rows(database_id: str) -> Skip:
    remedy = "Nothing to do if the proxy has recorded nothing yet; otherwise copy the database again."
    return Skip(database_id, None, "no_rows", "table `requests` has no rows", remedy, is_left_out=False)


def _text(value: bytes | None) -> str | None:
    return None if value is None else str(value, "utf-8", "replace")
