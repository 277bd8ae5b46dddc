"""From a HAR file to rows of raw_requests and segments."""

from __future__ import annotations

import hashlib
from typing import BinaryIO, Final

from kv_pipeline.errors import Skip
from kv_pipeline.schemas.requests import HAR
from kv_pipeline.sources.anthropic_messages.pair_reader import PairReader
from kv_pipeline.sources.anthropic_messages.rows import Facts, messages_endpoint
from kv_pipeline.sources.har.entries import HarError, entries_of
from kv_pipeline.sources.har.exchange import Exchange
from kv_pipeline.sources.interning import Row

_FILE_REMEDY: Final = "Export it again; the entries before are used."


class HarReader(PairReader):
    """Reads one file, entry by entry."""

    recorded_by = HAR
    pair_name, place_name = "entry", "entry"

    def pairs(self, file: BinaryIO) -> None:
        """Go through the entries."""
        try:
            for number, raw in enumerate(entries_of(file), start=1):
                self.use(number, raw)
        except HarError as error:
            self.skips.append(Skip(self.database_id, None, error.reason, error.found, _FILE_REMEDY))

    def row(self, number: int, raw: bytes) -> Row | None:
        """An entry's row."""
        if self.is_repeated(number, hashlib.blake2b(raw, digest_size=16).digest()):
            return None
        try:
            exchange = Exchange(raw)
        except (ValueError, RecursionError) as error:
            raise self.error("broken_entry", number, "the entry is no JSON object") from error
        return self._request(number, exchange)

    def _request(self, number: int, exchange: Exchange) -> Row:
        if not exchange.request:
            raise self.error("no_request", number, "the entry has no request")
        endpoint = messages_endpoint(exchange.url)
        if endpoint is None:
            raise self.error("other_endpoint", number, "the request is not for /v1/messages")
        body = self.maker.parse(exchange.body, number)
        requested_at = self.time(number, exchange.requested_at, "the entry's time")
        parts = self.maker.intern(exchange.body, body, number)
        if exchange.is_response_lost:
            found = "no text of the response was recorded, or none that can be decoded"
            self.note(number, "no_response_body", found)
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
        return self.maker.row(facts, body.rest, parts, exchange.answer(requested_at))
