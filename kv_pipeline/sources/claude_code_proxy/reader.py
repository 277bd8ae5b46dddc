"""From a proxy database to rows of raw_requests and segments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.core.hashing import salted_u64
from kv_pipeline.core.normalise import SegmentKind
from kv_pipeline.errors import InputError, Skip
from kv_pipeline.schemas.columns import frame_of
from kv_pipeline.schemas.requests import RAW_REQUESTS, SEGMENTS
from kv_pipeline.sources.claude_code_proxy.answer import Answer, parse_answer
from kv_pipeline.sources.claude_code_proxy.body import not_json
from kv_pipeline.sources.claude_code_proxy.database import RequestRow, read_rows
from kv_pipeline.sources.claude_code_proxy.repetition import ParsedBody, RepetitionParser
from kv_pipeline.sources.interning import Interned, Row, SegmentInterner
from kv_pipeline.sources.times import parse_utc

MESSAGES_ENDPOINT: Final = "/v1/messages"
_LEFT_OUT: Final = "The row is left out; the others are used."


class DatabaseContent(NamedTuple):
    """What a database holds.

    Attributes:
        requests: Frame of `RAW_REQUESTS`, in row order.
        skips: Rows and files that were left out, and rows that were used without their answer.
    """

    requests: pl.DataFrame
    skips: list[Skip]


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
        self._salt = salt
        self._emit_segments = emit_segments
        self._scratch = scratch
        self._interner = SegmentInterner(salt, keep_billing_header, self._emit)
        self._bodies = RepetitionParser(database_id)
        self._skips: list[Skip] = []

    def read(self, path: Path) -> DatabaseContent:
        """Read every row; what can't be used is listed, not raised.

        A file that can't be opened yields no rows and one skip; a damaged one the rows before the damage.
        """
        rows: list[Row] = []
        try:
            for row in read_rows(path, self._database_id, self._scratch):
                self._append(rows, row)
            if not rows and not self._skips:
                self._skips.append(_no_rows(self._database_id))
        except InputError as error:
            self._skips.append(Skip.of(error))
        self._interner.flush()
        self._note_clock(rows)
        return DatabaseContent(frame_of(RAW_REQUESTS, rows), self._skips)

    def _emit(self, rows: list[Row]) -> None:
        self._emit_segments(frame_of(SEGMENTS, [(self._database_id, *row) for row in rows]))

    def _append(self, rows: list[Row], row: RequestRow | InputError) -> None:
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
        body = self._bodies.parse(row.body, row.row_id)
        requested_at = self._time(row)
        parts = self._segments(row, body)
        model = body.rest.model or _text(row.model) or "unknown"
        return self._row(row, endpoint, model, body, requested_at, parts, self._answer(row))

    def _row(
        self,
        row: RequestRow,
        endpoint: str,
        model: str,
        body: ParsedBody,
        requested_at: datetime,
        parts: _Parts,
        answer: Answer,
    ) -> Row:
        usage = answer.usage
        request_id = _text(row.id) or f"row-{row.row_id}"
        content_id = self._interner.content_id(model, parts.indexes)
        values = (
            (endpoint, model, _text(row.routed_model), body.rest.is_streaming, answer.status_code, answer.outcome)
            + (answer.message_id, answer.stop_reason, list(answer.output_types))
            + (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens)
            + (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens)
            + (answer.api_time_s, answer.ttft_s, answer.completed_at_utc)
        )
        cache_facts = tuple(self._option_id(*option) for option in body.rest.options._asdict().items()) + (
            answer.cache_miss_reason,
            answer.cache_missed_input_tokens,
            answer.has_applied_edits,
        )
        structure = (parts.tools, parts.system, parts.messages, parts.breakpoints)
        payload_bytes = len(row.body or b"") + len(row.response or b"")
        digest_of = (
            request_id,
            requested_at.isoformat(),
            values,
            parts.breakpoints,
            payload_bytes,
            content_id,
            cache_facts,
        )
        return (
            (self._database_id, row.row_id, request_id, requested_at)
            + values
            + structure
            + (payload_bytes, content_id, parts.billing_header_id)
            + cache_facts
            + (salted_u64(self._salt, repr(digest_of).encode()),)
        )

    def _option_id(self, name: str, canonical: bytes | None) -> int | None:
        return None if canonical is None else salted_u64(self._salt, name.encode() + b"=" + canonical)

    def _segments(self, row: RequestRow, body: ParsedBody) -> _Parts:
        rest = body.rest
        try:
            tools = None if rest.tools is None else self._interner.intern(SegmentKind.TOOLS, rest.tools)
            system = None if rest.system is None else self._interner.intern(SegmentKind.SYSTEM, rest.system)
            messages = body.shared + [self._interner.intern(SegmentKind.MESSAGE, raw) for raw in rest.messages]
        except (ValueError, RecursionError) as error:
            raise not_json(error, self._database_id, row.row_id) from error
        self._bodies.remember(row.body or b"", body, messages)
        return _Parts.of(tools, system, messages, rest.automatic_cache_ttl)

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
        return InputError(reason, self._database_id, found, _LEFT_OUT, row.row_id)

    def _note_clock(self, rows: list[Row]) -> None:
        """Rows are inserted as requests come, so a time before the row before means that the clock was set back."""
        for before, row in pairwise(rows):
            if row[3] < before[3]:
                found = f"its time is {(before[3] - row[3]).total_seconds():.0f} s before the row before it"
                remedy = "The row is used; times around it, and the order of requests, may be off."
                self._skips.append(Skip(self._database_id, row[1], "clock_set_back", found, remedy, False))


class _Parts(NamedTuple):
    """A request's segments and breakpoints."""

    tools: int | None
    system: int | None
    messages: list[int]
    breakpoints: list[dict[str, object]]
    billing_header_id: int | None

    @property
    def indexes(self) -> list[int]:
        return [index for index in (self.tools, self.system) if index is not None] + self.messages

    @classmethod
    def of(
        cls,
        tools: Interned | None,
        system: Interned | None,
        messages: list[Interned],
        automatic_ttl: str | None,
    ) -> _Parts:
        parts = [("tools", None, tools), ("system", None, system)]
        marked = [("messages", index, message) for index, message in enumerate(messages) if message.markers]
        breakpoints: list[dict[str, object]] = [
            {"section": section, "item_index": item, "block_index": marker.block_index, "ttl": marker.ttl}
            for section, item, interned in [*parts, *marked]
            if interned is not None
            for marker in interned.markers
        ]
        if automatic_ttl is not None:
            breakpoints.append({"section": "request", "item_index": None, "block_index": None, "ttl": automatic_ttl})
        return cls(
            tools=None if tools is None else tools.segment_index,
            system=None if system is None else system.segment_index,
            messages=[message.segment_index for message in messages],
            breakpoints=breakpoints,
            billing_header_id=None if system is None else system.billing_header_id,
        )


def _no_rows(database_id: str) -> Skip:
    remedy = "Nothing to do if the proxy has recorded nothing yet; otherwise copy the database again."
    return Skip(database_id, None, "no_rows", "table `requests` has no rows", remedy, is_left_out=False)


def _text(value: bytes | None) -> str | None:
    return None if value is None else str(value, "utf-8", "replace")
