"""From a claude-trace log to rows of raw_requests and segments."""

from __future__ import annotations

from typing import BinaryIO

from kv_pipeline.errors import InputError, Skip
from kv_pipeline.schemas.requests import CLAUDE_TRACE
from kv_pipeline.sources import lines
from kv_pipeline.sources.anthropic_messages.pair_reader import PairReader
from kv_pipeline.sources.anthropic_messages.rows import Facts
from kv_pipeline.sources.claude_trace.pairs import (
    Pair,
    answer_of_pair,
    endpoint_of,
    parse_pair,
    request_id_of,
    time_of,
)
from kv_pipeline.sources.interning import Row


class LogReader(PairReader):
    """Reads one log, a pair a line."""

    recorded_by = CLAUDE_TRACE
    pair_name, place_name = "pair", "line"

    def pairs(self, file: BinaryIO) -> None:
        """Go through the lines."""
        self._max_line_bytes = lines.max_line_bytes()
        number = 0
        for number, line in enumerate(lines.lines_of(file), start=1):
            self.use(number, line.removeprefix(lines.BOM) if number == 1 else line)
        if not number:
            found, remedy = "the file is empty", "Copy it again, or remove it."
            self.skips.append(Skip(self.database_id, None, "empty_file", found, remedy))

    def row(self, number: int, raw: bytes) -> Row | None:
        """A line's row."""
        if len(raw) > self._max_line_bytes:
            raise self.error("long_line", number, f"the line is longer than {self._max_line_bytes:,} bytes")
        if not raw.strip():
            return None
        try:
            pair = parse_pair(raw)
        except (ValueError, RecursionError) as error:
            raise self._broken(number, raw) from error
        return None if self.is_repeated(number, pair.digest) else self._request(number, pair)

    def _request(self, number: int, pair: Pair) -> Row:
        request = pair.request
        if request is None:
            raise self.error("no_request", number, "the pair has no request, or one that is no JSON object")
        endpoint = endpoint_of(request)
        if endpoint is None:
            raise self.error("other_endpoint", number, "the request is not for /v1/messages")
        body = self.maker.parse(pair.body, number)
        requested_at = self.time(number, lambda: time_of(request), "the timestamp")
        parts = self.maker.intern(pair.body, body, number)
        if pair.is_response_broken:
            self.note(number, "response_not_json", "the response is not a JSON object")
        facts = Facts(
            row_id=number,
            request_id=request_id_of(pair),
            requested_at_utc=requested_at,
            endpoint=endpoint,
            model=None,
            routed_model=None,
            payload_bytes=pair.payload_bytes,
        )
        return self.maker.row(facts, body.rest, parts, answer_of_pair(pair, requested_at))

    def _broken(self, number: int, line: bytes) -> InputError:
        if line.endswith(b"\n"):
            return self.error("broken_line", number, "the line is no JSON object")
        remedy = "Run again when it is complete."
        return InputError("unfinished_line", self.database_id, "the last line is cut off", remedy, number)
