"""From a recorded request and its answer to a row of raw_requests, and segments: the same for every source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.core.hashing import salted_u64
from kv_pipeline.core.normalise import Marker, SegmentKind
from kv_pipeline.errors import Skip
from kv_pipeline.schemas.columns import GrowingFrame, frame_of
from kv_pipeline.schemas.requests import RECORDED, SEGMENTS
from kv_pipeline.sources.anthropic_messages.answer import Answer
from kv_pipeline.sources.anthropic_messages.body import Body, Options, not_json
from kv_pipeline.sources.anthropic_messages.repetition import ParsedBody, RepetitionParser
from kv_pipeline.sources.interning import Interned, InternedMessages, Row, SegmentInterner

MESSAGES_ENDPOINT: Final = "/v1/messages"
LEFT_OUT: Final = "The row is left out; the others are used."


def messages_endpoint(url: object) -> str | None:
    """The API path of a URL, without host and query, which may hold secrets; None if it is not that of messages."""
    path = url.partition("?")[0].partition("#")[0].rstrip("/") if isinstance(url, str) else ""
    return MESSAGES_ENDPOINT if path.endswith(MESSAGES_ENDPOINT) else None


class Recording(NamedTuple):
    """What a recording, a database or a log, holds.

    Attributes:
        requests: Frame of `RAW_REQUESTS`, in row order.
        skips: Rows and files that were left out, and rows that were used without their answer.
    """

    requests: pl.DataFrame
    skips: list[Skip]


class Facts(NamedTuple):
    """What a log says of a request outside its body.

    Attributes:
        row_id: Row or line.
        request_id: Id of the request; None if the log has none.
        requested_at_utc: Time of the request.
        endpoint: API path.
        model: Model to assume if the body names none.
        routed_model: Model that a proxy sent it to.
        payload_bytes: Bytes of request and answer as recorded.
        exactness: One of `EXACTNESS`.
        session_id: Session that it is of, should the body name none.
        agent_id: Agent that sent it.
    """

    row_id: int
    request_id: str | None
    requested_at_utc: datetime
    endpoint: str
    model: str | None
    routed_model: str | None
    payload_bytes: int
    session_id: str | None = None
    agent_id: str | None = None
    exactness: str = RECORDED


class RequestRows:
    """Makes the rows of one recording, in the order in which its requests were recorded.

    Args:
        database_id: Name of the recording in the store.
        recorded_by: One of `RECORDERS`.
        salt: Secret of the store.
        keep_billing_header: Leave billing headers as they are.
        emit_segments: Receives frames of `SEGMENTS` as rows are made.
    """

    def __init__(
        self,
        database_id: str,
        recorded_by: str,
        salt: bytes,
        keep_billing_header: bool,
        emit_segments: Callable[[pl.DataFrame], None],
    ) -> None:
        self._database_id = database_id
        self._recorded_by = recorded_by
        self._salt = salt
        self._emit_segments = emit_segments
        self._interner = SegmentInterner(salt, keep_billing_header, self._emit)
        self._bodies = RepetitionParser(database_id)

    def parse(self, raw: bytes | None, row_id: int) -> ParsedBody:
        """Split a body into what is known already and the rest.

        Raises:
            InputError: As `parse_body`.
        """
        return self._bodies.parse(raw, row_id)

    def intern(self, raw: bytes | None, body: ParsedBody, row_id: int) -> Parts:
        """Number a body's segments.

        Raises:
            InputError: One of them is not JSON.
        """
        rest = body.rest
        try:
            tools = None if rest.tools is None else self._interner.intern(SegmentKind.TOOLS, rest.tools)
            system = None if rest.system is None else self._interner.intern(SegmentKind.SYSTEM, rest.system)
            added = [self._interner.intern(SegmentKind.MESSAGE, part) for part in rest.messages]
        except (ValueError, RecursionError) as error:
            raise not_json(error, self._database_id, row_id) from error
        messages = body.shared.followed_by(added)
        self._bodies.remember(raw or b"", body, messages)
        return Parts.of(tools, system, messages, rest.automatic_cache_ttl)

    def parts(
        self, tools: int | None, system: int | None, messages: list[int], breakpoints: list[dict[str, object]]
    ) -> Parts:
        """Parts whose segments are known by number."""
        ids = self._interner.ids([index for index in (tools, system) if index is not None] + messages)
        return Parts(tools, system, messages, breakpoints, None, ids)

    def segment(self, kind: SegmentKind, raw: bytes) -> int:
        """Number of a segment, given its JSON as sent.

        Raises:
            ValueError: It is not JSON.
            RecursionError: It is nested too deeply.
        """
        return self._interner.intern(kind, raw).segment_index

    def unseen_segment(self, kind: SegmentKind, seen: Sequence[bytes], key: bytes, n_tokens: int) -> int:
        """Number of tools or a system prompt that is known in part, as `SegmentInterner.intern_unseen`."""
        return self._interner.intern_unseen(kind, seen, key, n_tokens).segment_index

    def hand_on(self) -> None:
        """Hand on the segments that are still pending."""
        self._interner.flush()

    def row(self, facts: Facts, body: Body, parts: Parts, answer: Answer) -> Row:
        """A row of `RAW_REQUESTS`."""
        usage = answer.usage
        request_id = facts.request_id or f"row-{facts.row_id}"
        model = body.model or facts.model or "unknown"
        content_id = salted_u64(self._salt, model.encode() + parts.ids)
        values = (
            (facts.endpoint, model, facts.routed_model, body.is_streaming, answer.status_code, answer.outcome)
            + (answer.message_id, answer.stop_reason, list(answer.output_types), list(answer.tools))
            + (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens)
            + (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens)
            + (answer.api_time_s, answer.ttft_s, answer.completed_at_utc)
        )
        structure = (parts.tools, parts.system, parts.messages, parts.breakpoints)
        cache_facts = (
            *_option_ids(self._salt, body.options),
            answer.cache_miss_reason,
            answer.cache_missed_input_tokens,
            answer.has_applied_edits,
        )
        origin = (self._recorded_by, body.session_id or facts.session_id, facts.agent_id)
        # Rows that were recorded keep the digest that they had before there was any other kind.
        exactness = () if facts.exactness == RECORDED else (facts.exactness,)
        digest_of = (
            request_id,
            facts.requested_at_utc.isoformat(),
            values,
            parts.breakpoints,
            facts.payload_bytes,
            content_id,
            cache_facts,
            origin,
            *exactness,
        )
        return (
            (self._database_id, facts.row_id, request_id, facts.requested_at_utc)
            + values
            + structure
            + (facts.payload_bytes, content_id, parts.billing_header_id)
            + cache_facts
            + origin
            + (facts.exactness,)
            + (salted_u64(self._salt, repr(digest_of).encode()),)
        )

    def frame(self, rows: GrowingFrame) -> pl.DataFrame:
        """Frame of `RAW_REQUESTS`, after all rows are made; hands on the segments that are still pending."""
        self._interner.flush()
        return rows.frame()

    def _emit(self, rows: list[Row]) -> None:
        self._emit_segments(frame_of(SEGMENTS, [(self._database_id, *row) for row in rows]))


@lru_cache(maxsize=64)
def _option_ids(salt: bytes, options: Options) -> tuple[int | None, ...]:
    """Salted ids of options, which a conversation hardly ever changes."""
    named = zip(options._fields, options, strict=True)
    return tuple([None if value is None else salted_u64(salt, name.encode() + b"=" + value) for name, value in named])


class Parts(NamedTuple):
    """A request's segments and breakpoints.

    Attributes:
        tools: Number of the tools' segment; None without any.
        system: Number of the system prompt's.
        messages: Numbers of the messages'.
        breakpoints: Rows of the column of that name.
        billing_header_id: Salted id of the billing header's changing values; None without one.
        ids: Ids of all segments in prompt order, one after the other.
    """

    tools: int | None
    system: int | None
    messages: list[int]
    breakpoints: list[dict[str, object]]
    billing_header_id: int | None
    ids: bytes

    @classmethod
    def of(
        cls,
        tools: Interned | None,
        system: Interned | None,
        messages: InternedMessages,
        automatic_ttl: str | None,
    ) -> Parts:
        """The parts that interned segments make up."""
        marked: list[tuple[str, int | None, tuple[Marker, ...]]] = [
            ("tools", None, tools.markers if tools is not None else ()),
            ("system", None, system.markers if system is not None else ()),
            *[("messages", index, markers) for index, markers in messages.marked],
        ]
        breakpoints: list[dict[str, object]] = [
            {"section": section, "item_index": item, "block_index": marker.block_index, "ttl": marker.ttl}
            for section, item, markers in marked
            for marker in markers
        ]
        if automatic_ttl is not None:
            breakpoints.append({"section": "request", "item_index": None, "block_index": None, "ttl": automatic_ttl})
        return cls(
            tools=None if tools is None else tools.segment_index,
            system=None if system is None else system.segment_index,
            messages=messages.indexes,
            breakpoints=breakpoints,
            billing_header_id=None if system is None else system.billing_header_id,
            ids=b"".join([part.segment_id for part in (tools, system) if part is not None]) + messages.ids,
        )
