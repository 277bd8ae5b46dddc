"""From a user's transcripts to rows of raw_requests and segments, for answers that nothing else recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from kv_pipeline.core.hashing import salted_u64
from kv_pipeline.core.normalise import SegmentKind
from kv_pipeline.core.payloads import UNSEEN_BLOCK
from kv_pipeline.core.tokenizer import encoder
from kv_pipeline.errors import Skip
from kv_pipeline.schemas.columns import GrowingFrame
from kv_pipeline.schemas.requests import RAW_REQUESTS, TRANSCRIPTS
from kv_pipeline.sources import lines
from kv_pipeline.sources.anthropic_messages.body import Body, options_of
from kv_pipeline.sources.anthropic_messages.rows import MESSAGES_ENDPOINT, Facts, Parts, Recording, RequestRows
from kv_pipeline.sources.interning import Row
from kv_pipeline.sources.transcript_requests.drafts import Draft, Wanted, ask_for_an_hour
from kv_pipeline.sources.transcript_requests.file_reading import FileReading, Note
from kv_pipeline.sources.transcript_requests.placement import assumed_system_breakpoints
from kv_pipeline.sources.transcript_requests.prefix import PrefixKind, kind_of, prefix_tokens
from kv_pipeline.sources.transcript_requests.records import UNUSABLE, decode_record, is_wanted
from kv_pipeline.sources.transcript_requests.session import Session

_USED: Final = "The request is put together from messages instead, and marked approximate."
_LOST: Final = "The answer has no request; the others are used."


class SessionFile(NamedTuple):
    """A transcript.

    Attributes:
        source: Its id in reports.
        path: Where it is.
        told: Lines that the reader of structure has left out, and told of.
    """

    source: str
    path: Path
    told: frozenset[int | None] = frozenset()


class TranscriptRequestReader:
    """Reads the transcripts of one user, session by session.

    Memory holds the content of one session, and all requests without content.

    Args:
        database_id: Name of the rows' partition in the store.
        salt: Secret of the store.
        keep_billing_header: Leave billing headers as they are.
        emit_segments: Receives frames of `SEGMENTS` as files are read.
        wanted: Message id to where the answer belongs, of the answers whose requests are to be found.
    """

    def __init__(
        self,
        database_id: str,
        salt: bytes,
        keep_billing_header: bool,
        emit_segments: Callable[[pl.DataFrame], None],
        wanted: Mapping[str, Wanted],
    ) -> None:
        self._salt = salt
        self._emit_segments = emit_segments
        self._wanted = wanted
        self._maker = RequestRows(database_id, TRANSCRIPTS, salt, keep_billing_header, self._emit)
        self._encode = encoder()
        self._token_counts: list[int] = []
        self._notices: dict[tuple[str, str], tuple[int, int, Note]] = {}

    def read(self, sessions: Iterable[tuple[str, Sequence[SessionFile]]]) -> Recording:
        """Read sessions, each with its main thread first; what can't be used is listed, not raised.

        Args:
            sessions: Session and its files.
        """
        drafts = [draft for session_id, files in sessions for draft in self._session(session_id, files)]
        drafts.sort(key=lambda draft: (draft.requested_at, len(draft.messages), draft.answer.message_id))
        self._maker.hand_on()
        lengths = prefix_tokens([draft for draft in drafts if draft.seen is not None], self._n_tokens)
        ask_for_an_hour(drafts)
        rows = GrowingFrame(RAW_REQUESTS)
        for draft in drafts:
            rows.append(self._row(draft, lengths))
        return Recording(self._maker.frame(rows).sort("row_id"), self._skips())

    def _session(self, session_id: str, files: Sequence[SessionFile]) -> list[Draft]:
        session = Session(session_id, self._wanted, self._maker.segment)
        for index, file in enumerate(files):
            try:
                self._file(file, FileReading(session, index))
            except OSError:
                continue  # the reader of structure tells
        return session.drafts

    def _file(self, file: SessionFile, reading: FileReading) -> None:
        limit = lines.max_line_bytes()
        with file.path.open("rb") as opened:
            for number, line in enumerate(lines.lines_of(opened), start=1):
                if len(line) > limit or not is_wanted(line):
                    continue
                try:
                    record = decode_record(line.removeprefix(lines.BOM) if number == 1 else line)
                except UNUSABLE:
                    self._broken(file, number, line)
                    continue
                for note in reading.record(record, len(line)):
                    self._note(file.source, number, note)

    def _broken(self, file: SessionFile, number: int, line: bytes) -> None:
        if number not in file.told:
            found = "the line is not JSON, or has bytes that are not UTF-8"
            self._note(file.source, number, Note("broken_content", found, is_left_out=b'"assistant"' in line))

    def _note(self, source: str, number: int, note: Note) -> None:
        first, n, noted = self._notices.get((source, note.reason), (number, 0, note))
        self._notices[source, note.reason] = (
            first,
            n + 1,
            noted._replace(is_left_out=noted.is_left_out | note.is_left_out),
        )

    def _skips(self) -> list[Skip]:
        """One notice a file and reason, with the first line and the number of times."""
        return [
            Skip(source, line, reason, note.found + (f" ({n} times from here on)" if n > 1 else ""),
                 _LOST if note.is_left_out else _USED, note.is_left_out)
            for (source, reason), (line, n, note) in self._notices.items()
        ]  # fmt: skip

    def _emit(self, frame: pl.DataFrame) -> None:
        estimates = frame["payloads"].list.eval(pl.element().struct.field("estimated_tokens")).list.sum().to_list()
        texts = frame["text"].to_list()
        self._token_counts += [
            len(self._encode(text)) + estimate for text, estimate in zip(texts, estimates, strict=True)
        ]
        self._emit_segments(frame)

    def _n_tokens(self, segments: list[int]) -> int:
        return int(np.asarray(self._token_counts, dtype=np.int64)[segments].sum())

    def _row(self, draft: Draft, lengths: Mapping[PrefixKind, int]) -> Row:
        answer = draft.answer
        parts = self._parts(draft, lengths)
        model = draft.params.get("model")
        body = Body(
            model=model if isinstance(model, str) else answer.model,
            tools=None,
            system=None,
            messages=[],
            is_streaming=True,
            automatic_cache_ttl=None,
            options=options_of(draft.params),
            session_id=draft.wanted.session_id,
        )
        facts = Facts(
            row_id=salted_u64(self._salt, b"row:" + answer.message_id.encode()) >> 1,
            request_id=answer.request_id or answer.message_id,
            requested_at_utc=draft.requested_at,
            endpoint=MESSAGES_ENDPOINT,
            model=None,
            routed_model=None,
            payload_bytes=answer.n_bytes,
            exactness=draft.exactness,
        )
        return self._maker.row(facts, body, parts, answer.answer(draft.requested_at))

    def _parts(self, draft: Draft, lengths: Mapping[PrefixKind, int]) -> Parts:
        if draft.seen is None:
            return self._maker.parts(draft.tools, draft.system, draft.messages, draft.breakpoints)
        tools, system = self._prefix(draft, lengths.get(kind_of(draft), 0))
        n_blocks = max(1, len(draft.seen.system)) if system is not None else 0
        marked = assumed_system_breakpoints(n_blocks, draft.ttl)
        return self._maker.parts(tools, system, draft.messages, marked + draft.breakpoints)

    def _prefix(self, draft: Draft, n_tokens: int) -> tuple[int | None, int | None]:
        """Segments of tools and system prompt: what was seen of them, and a stand-in for the rest before it."""
        system, tools = (draft.seen.system, draft.seen.tools or []) if draft.seen else ([], [])
        seen_text = b"".join([*tools, *system]).decode("utf-8", "replace")
        unseen_tokens = n_tokens - len(self._encode(seen_text)) - len(self._encode(f"[{UNSEEN_BLOCK}]"))
        key = "\0".join((*kind_of(draft), str(len(tools)), str(len(system)))).encode("utf-8", "replace")
        if unseen_tokens <= 0:
            whole = [b"[" + b",".join(part) + b"]" if part else None for part in (tools, system)]
            return (
                None if whole[0] is None else self._maker.segment(SegmentKind.TOOLS, whole[0]),
                None if whole[1] is None else self._maker.segment(SegmentKind.SYSTEM, whole[1]),
            )
        if not system:
            return None, self._maker.unseen_segment(SegmentKind.SYSTEM, [], key, unseen_tokens)
        return (
            self._maker.unseen_segment(SegmentKind.TOOLS, tools, key, unseen_tokens),
            self._maker.segment(SegmentKind.SYSTEM, b"[" + b",".join(system) + b"]"),
        )
