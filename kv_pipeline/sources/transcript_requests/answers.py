"""Answers as transcripts hold them: one record a content block, gathered by message id."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kv_pipeline.sources.anthropic_messages import answer
from kv_pipeline.sources.transcript_requests.records import Message, Record, value_of

SYNTHETIC_MODEL = "<synthetic>"


@dataclass(slots=True)
class Gathered:
    """An answer, as far as its records were read.

    Attributes:
        message_id: Id of its message.
        model: Model that answered.
        version: The client's.
        request_id: The API's id of the request; None if the client did not note it.
        ttl: Cache lifetime that the client asked for; None if it does not say.
        first_at: Time of its first record.
        last_at: Time of its last record.
        n_bytes: Bytes of its records.
        message: What its records say together.
    """

    message_id: str
    model: str
    version: str
    request_id: str | None
    ttl: str | None
    first_at: datetime
    last_at: datetime
    n_bytes: int = 0
    message: answer.Message = field(default_factory=answer.Message)

    def add(self, sent: Message, blocks: list[object], at: datetime | None, n_bytes: int) -> None:
        """Take another record of the answer.

        The last stop reason that is not null holds, and of usage, which early records have from the stream's start, the
        one with the most output.
        """
        self.n_bytes += n_bytes
        self.last_at = max(self.last_at, at or self.last_at)
        self.message.blocks.extend(blocks)
        self.message.stop_reason = sent.stop_reason or self.message.stop_reason
        usage = value_of(sent.usage)
        if isinstance(usage, dict) and _output(usage) >= _output(self.message.usage):
            self.message.usage = usage
        holder = {"diagnostics": value_of(sent.diagnostics), "context_management": value_of(sent.context_management)}
        self.message.note_cache(holder)

    def answer(self, requested_at: datetime) -> answer.Answer:
        """The answer to a request that was sent at a time."""
        self.message.message_id, self.message.is_complete = self.message_id, True
        api_time_s = answer.plausible_seconds((self.last_at - requested_at).total_seconds())
        return answer.answer_of(self.message, None, None, api_time_s, self.last_at)


def is_answer(record: Record, message: Message) -> bool:
    """Whether an assistant record is an answer of the API, not the client's own words."""
    return not record.is_api_error_message and message.model != SYNTHETIC_MODEL and bool(message.id)


def _output(usage: dict[str, Any]) -> int:
    tokens = usage.get("output_tokens")
    return tokens if isinstance(tokens, int) else -1
