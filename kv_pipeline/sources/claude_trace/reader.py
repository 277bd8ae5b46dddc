"""From a claude-trace log to rows of raw_requests and segments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl

from kv_pipeline.errors import InputError, Skip
from kv_pipeline.schemas.requests import CLAUDE_TRACE
from kv_pipeline.sources import lines
from kv_pipeline.sources.anthropic_messages.answer import Answer
from kv_pipeline.sources.anthropic_messages.rows import LEFT_OUT, Facts, Recording, RequestRows
from kv_pipeline.sources.claude_trace.pairs import (
    Pair,
    answer_of_pair,
    endpoint_of,
    parse_pair,
    request_id_of,
    time_of,
)
from kv_pipeline.sources.interning import Row

_UNANSWERED: Final = "The request is kept as one without an answer."


class LogReader:
    """Reads one log.

    Args:
        database_id: Name of the log in the store.
        salt: Secret of the store.
        keep_billing_header: Leave billing headers as they are.
        emit_segments: Receives frames of `SEGMENTS` as the log is read.
    """

    def __init__(
        self,
        database_id: str,
        salt: bytes,
        keep_billing_header: bool,
        emit_segments: Callable[[pl.DataFrame], None],
    ) -> None:
        self._database_id = database_id
        self._maker = RequestRows(database_id, CLAUDE_TRACE, salt, keep_billing_header, emit_segments)
        self._rows: list[Row] = []
        self._skips: list[Skip] = []
        self._seen: dict[bytes, int] = {}

    def read(self, path: Path) -> Recording:
        """Read every line; what can't be used is listed, not raised."""
        try:
            self._read(path)
        except OSError as error:
            found = f"the file can't be read: {error.strerror}"
            self._skips.append(Skip(self._database_id, None, "unreadable_file", found, "Check its permissions."))
        return Recording(self._maker.frame(self._rows), self._skips)

    def _read(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise OSError(0, "it is no regular file")
        number = 0
        with path.open("rb") as file:
            for number, line in enumerate(lines.lines_of(file), start=1):
                try:
                    self._line(number, line.removeprefix(lines.BOM) if number == 1 else line)
                except InputError as error:
                    self._skips.append(Skip.of(error))
        if not number:
            found, remedy = "the file is empty", "Copy it again, or remove it."
            self._skips.append(Skip(self._database_id, None, "empty_file", found, remedy))

    def _line(self, number: int, line: bytes) -> None:
        if len(line) > (limit := lines.max_line_bytes()):
            raise self._error("long_line", number, f"the line is longer than {limit:,} bytes")
        if not line.strip():
            return
        try:
            pair = parse_pair(line)
        except (ValueError, RecursionError) as error:
            raise self._broken(number, line) from error
        first = self._seen.setdefault(pair.digest, number)
        if first == number:
            self._rows.append(self._request(number, pair))
        else:
            found, remedy = f"the pair repeats line {first}", "It is counted once."
            self._skips.append(Skip(self._database_id, number, "repeated_pair", found, remedy, is_left_out=False))

    def _request(self, number: int, pair: Pair) -> Row:
        if pair.request is None:
            raise self._error("no_request", number, "the pair has no request, or one that is no JSON object")
        endpoint = endpoint_of(pair.request)
        if endpoint is None:
            raise self._error("other_endpoint", number, "the request is not for /v1/messages")
        body = self._maker.parse(pair.body, number)
        requested_at = self._time(number, pair)
        parts = self._maker.intern(pair.body, body, number)
        facts = Facts(
            row_id=number,
            request_id=request_id_of(pair),
            requested_at_utc=requested_at,
            endpoint=endpoint,
            model=None,
            routed_model=None,
            payload_bytes=pair.payload_bytes,
        )
        return self._maker.row(facts, body, parts, self._answer(number, pair, requested_at))

    def _answer(self, number: int, pair: Pair, requested_at: datetime) -> Answer:
        if pair.is_response_broken:
            found = "the response is not a JSON object"
            self._skips.append(Skip(self._database_id, number, "response_not_json", found, _UNANSWERED, False))
        return answer_of_pair(pair, requested_at)

    def _time(self, number: int, pair: Pair) -> datetime:
        try:
            return time_of(pair.request or {})
        except ValueError as error:
            raise self._error("bad_timestamp", number, "the timestamp can't be read") from error

    def _broken(self, number: int, line: bytes) -> InputError:
        if line.endswith(b"\n"):
            return self._error("broken_line", number, "the line is no JSON object")
        remedy = "Run again when it is complete."
        return InputError("unfinished_line", self._database_id, "the last line is cut off", remedy, number)

    def _error(self, reason: str, number: int, found: str) -> InputError:
        return InputError(reason, self._database_id, found, LEFT_OUT, number)
