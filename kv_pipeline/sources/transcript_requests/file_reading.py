"""One file from top to bottom: its records become nodes of the session's tree, its answers requests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from kv_pipeline.sources.lenient import decode_leniently
from kv_pipeline.sources.times import parse_utc
from kv_pipeline.sources.transcript_requests.answers import Gathered, is_answer
from kv_pipeline.sources.transcript_requests.drafts import Seen
from kv_pipeline.sources.transcript_requests.messages import Sent, blocks_of
from kv_pipeline.sources.transcript_requests.recorded import NotRebuiltError
from kv_pipeline.sources.transcript_requests.records import (
    UNUSABLE,
    Attachment,
    Message,
    Record,
    decode_message,
    value_of,
)
from kv_pipeline.sources.transcript_requests.session import Asked, Session
from kv_pipeline.sources.transcript_requests.tree import ASSISTANT, REMINDER, SYSTEM, USER, Node

_SNAPSHOT: Final = "prompt_snapshot"
_NULL: Final = b"null"
_rendered_decoder: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


class Note(NamedTuple):
    """Something worth knowing about a line.

    Attributes:
        reason: Machine-readable.
        found: What was found, without content.
        is_left_out: Whether the answer on the line has no request.
    """

    reason: str
    found: str
    is_left_out: bool = False


class FileReading:
    """The state of reading one file.

    Args:
        session: The session that it belongs to.
        file: Number of the file within it.
    """

    def __init__(self, session: Session, file: int) -> None:
        self._session, self._file = session, file
        self._answers: dict[str, Node] = {}
        self._gathered: dict[str, Gathered] = {}
        self._results: dict[bytes, Node] = {}
        self._request_times: dict[str, datetime] = {}
        self._fork_of: str | None = None
        self._last: Node | None = None
        self._seen: Seen | None = None
        self._assembly = _Assembly()

    def record(self, record: Record, n_bytes: int) -> list[Note]:
        """Take a record; returns what is worth knowing about it."""
        try:
            return list(self._notes(record, n_bytes))
        except NotRebuiltError as error:
            return [Note(error.reason, error.found)]
        except (*UNUSABLE, LookupError, TypeError):
            is_answer_lost = record.type == "assistant"
            return [Note("odd_content", "content that is nested too deeply or no JSON", is_answer_lost)]

    def _notes(self, record: Record, n_bytes: int) -> Iterator[Note]:
        match record.type:
            case "api-request-shape":
                self._session.records.add_shape(record)
            case "api-request-blob":
                self._session.records.add_blob(record)
            case "api-request":
                self._request(record)
            case "fork-context-ref":
                self._fork_of = record.parent_last_uuid
                if self._fork_of not in self._session.nodes:
                    yield Note("unknown_parent", "the thread that a fork continues is in no file")
            case "assistant":
                yield from self._assistant(record, n_bytes)
            case "user":
                yield from self._user(record)
            case "attachment":
                yield from self._attachment(record)
            case _:
                yield from self._pass_over(record)

    def _request(self, record: Record) -> None:
        self._session.records.add_request(record)
        time = _time(record)
        if record.id is not None and time is not None:
            self._request_times[record.id] = time
        if self._session.records.unknown_of(record):
            for message in self._assembly.offered():
                self._session.records.add_message(message)

    def _assistant(self, record: Record, n_bytes: int) -> Iterator[Note]:
        message = decode_message(bytes(record.message))
        if message.id is None or not is_answer(record, message):
            yield from self._pass_over(record)
            return
        blocks = blocks_of(bytes(message.content))
        self._assembly.add_answer(message.id, blocks)
        node = self._answers.get(message.id)
        if node is not None:
            self._link(record, node)
            added = [block for block in blocks if block not in node.blocks]  # a resumed session repeats its history
            node.blocks += added
            self._gather(message, record, added, n_bytes)
            return
        parent, notes = self._parent(record)
        yield from notes
        node = self._answers[message.id] = self._node(parent, ASSISTANT, blocks, _time(record))
        if record.request_ref is not None and self._session.records.shape_of(record.request_ref) is not None:
            node.request_ref = record.request_ref
        self._link(record, node)
        yield from self._make(message.id, message, record, node)
        self._gather(message, record, blocks, n_bytes)

    def _make(self, message_id: str, message: Message, record: Record, node: Node) -> Iterator[Note]:
        wanted = self._session.claim(message_id)
        if wanted is None:
            return
        at = _time(record)
        if at is None:
            yield Note("bad_timestamp", "an answer has no time", is_left_out=True)
            return
        answer = Gathered(
            message_id, message.model or "unknown", record.version or "unknown", record.request_id,
            record.prompt_cache_requested if record.prompt_cache_requested in ("5m", "1h") else None, at, at,
        )  # fmt: skip
        self._gathered[message_id] = answer
        requested_at = self._request_times.get(record.request_ref or "")
        problem = self._session.make(Asked(answer, wanted, node, record.request_ref, requested_at, self._seen))
        if problem is not None:
            yield Note(problem.reason, problem.found, is_left_out=not wanted.may_be_approximate)

    def _gather(self, message: Message, record: Record, blocks: list[bytes], n_bytes: int) -> None:
        answer = self._gathered.get(message.id or "")
        if answer is not None:
            answer.add(message, [value_of(block) for block in blocks], _time(record), n_bytes)

    def _user(self, record: Record) -> Iterator[Note]:
        message = decode_message(bytes(record.message))
        blocks = blocks_of(bytes(message.content))
        self._assembly.add_user(blocks)
        result = next((block for block in blocks if b'"tool_result"' in block), None)
        if result is not None and result in self._results:
            self._link(record, self._results[result])
            return
        parent, notes = self._parent(record)
        yield from notes
        node = self._node(parent, USER, blocks, _time(record))
        self._link(record, node)
        if result is not None:
            self._results[result] = node
            caller = _answer_before(parent)
            if caller is not None:
                caller.results.append(node)

    def _attachment(self, record: Record) -> Iterator[Note]:
        rendered = bytes(record.rendered)
        if rendered == _NULL:
            attachment = decode_leniently(bytes(record.attachment), Attachment)
            if attachment.type == _SNAPSHOT and attachment.system_prompt:
                self._see(attachment)
            yield from self._pass_over(record)
            return
        parent, notes = self._parent(record)
        yield from notes
        blocks = [
            b'{"type":"text","text":' + bytes(part["content"]) + b"}" for part in _rendered_decoder.decode(rendered)
        ]
        role = SYSTEM if record.rendered_role == SYSTEM else REMINDER
        self._link(record, self._node(parent, role, blocks, _time(record)))

    def _see(self, attachment: Attachment) -> None:
        """Note a snapshot; what it adds to the one before holds for the requests before it, too."""
        text = "\n\n".join(attachment.system_prompt)
        system = [part for part in (attachment.cli_prefix, text) if part]
        blocks = [msgspec.json.encode({"type": "text", "text": part}) for part in system]
        if self._seen is None or self._seen.system[-1] != blocks[-1]:
            self._seen = Seen(blocks)
        elif len(blocks) > len(self._seen.system):
            self._seen.system = blocks
        schemas = value_of(attachment.tools)
        if self._seen.tools is None and isinstance(schemas, list) and schemas:
            tools = [tool.get("schema") for tool in schemas if isinstance(tool, dict)]
            self._seen.tools = [msgspec.json.encode(tool) for tool in tools if isinstance(tool, dict)]

    def _pass_over(self, record: Record) -> Iterator[Note]:
        """A record without content for the model: what follows it follows its parent."""
        if record.uuid is None:
            return
        if record.subtype == "compact_boundary":
            self._session.nodes[record.uuid] = self._last = None
            return
        parent, notes = self._parent(record)
        yield from notes
        self._session.nodes[record.uuid] = parent

    def _parent(self, record: Record) -> tuple[Node | None, list[Note]]:
        nodes = self._session.nodes
        uuid = record.parent_uuid
        if uuid is None:
            is_start_of_fork = self._fork_of is not None and self._last is None
            return (nodes.get(self._fork_of or "") if is_start_of_fork else None), []
        if uuid in nodes:
            return nodes[uuid], []
        return self._last, [Note("unknown_parent", "the record before is in no file; the line before counts as it")]

    def _node(self, parent: Node | None, role: str, blocks: list[bytes], time: datetime | None) -> Node:
        return Node(parent, self._session.next_place(), self._file, role, blocks, time)

    def _link(self, record: Record, node: Node) -> None:
        self._last = node
        if record.uuid is not None:
            self._session.nodes[record.uuid] = node


class _Assembly:
    """Messages as they were most likely sent, by the order of lines: an answer, then everything until the next.

    A request names messages by digest, so a wrong guess costs nothing.
    """

    def __init__(self) -> None:
        self._complete: list[Sent] = []
        self._message_id: str | None = None
        self._answer: list[bytes] = []
        self._run: list[bytes] = []

    def add_answer(self, message_id: str, blocks: list[bytes]) -> None:
        """Take a record of an answer."""
        if message_id != self._message_id:
            self._complete += self._open()
            self._message_id, self._answer, self._run = message_id, [], []
        self._answer += blocks

    def add_user(self, blocks: list[bytes]) -> None:
        """Take a user record."""
        self._run += blocks

    def offered(self) -> list[Sent]:
        """All messages since this was last asked, those still open included."""
        offered, self._complete = self._complete + self._open(), []
        return offered

    def _open(self) -> list[Sent]:
        parts = ((ASSISTANT, self._answer), (USER, self._run))
        return [Sent(role, blocks) for role, blocks in parts if blocks]


def _answer_before(node: Node | None) -> Node | None:
    """The answer that a run follows."""
    while node is not None and node.role != ASSISTANT:
        node = node.parent
    return node


def _time(record: Record) -> datetime | None:
    try:
        return parse_utc(record.timestamp or "")
    except ValueError:
        return None
