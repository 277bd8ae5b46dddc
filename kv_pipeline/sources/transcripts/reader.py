"""From one transcript file to the facts that conversations are built from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kv_pipeline.errors import Skip
from kv_pipeline.names import printable, safe_name
from kv_pipeline.schemas.requests import MISS_REASONS
from kv_pipeline.sources import lines
from kv_pipeline.sources.lenient import decode_leniently
from kv_pipeline.sources.transcripts.records import (
    AGENT_TOOLS,
    AgentInput,
    AgentMeta,
    AgentResult,
    CompactMetadata,
    ContentBlock,
    Diagnostics,
    Record,
    decode_blocks,
    decode_record,
)

MAIN_AGENT: Final = "main"
_SYNTHETIC_MODEL: Final = "<synthetic>"
_AGENT_FOLDER: Final = "subagents"
_UNUSABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_ALSO_WANTED: Final = (b'"toolUseResult"', b'"compact_boundary"', b'"fork-context-ref"')
_AGENT_TOOLS_QUOTED: Final = tuple(f'"{name}"'.encode() for name in AGENT_TOOLS)


class AnswerRecord(NamedTuple):
    """First record of an assistant message: agent `agent_id` of session `session_id` received it.

    `cache_miss_reason` and `cache_missed_input_tokens` are the first that any of its records has.
    """

    session_id: str
    agent_id: str
    line: int
    message_id: str
    timestamp: str
    cache_miss_reason: str | None = None
    cache_missed_input_tokens: int | None = None


class AgentCall(NamedTuple):
    """An Agent or Task tool call: who called it, and for what type of sub-agent."""

    session_id: str
    agent_id: str
    tool_use_id: str
    subagent_type: str | None


class AgentOutcome(NamedTuple):
    """The result of a sub-agent, as its caller's transcript records it."""

    session_id: str
    tool_use_id: str | None
    result: AgentResult


class AgentFile(NamedTuple):
    """A sub-agent's own transcript."""

    session_id: str
    agent_id: str
    is_fork: bool
    is_warmup: bool
    meta: AgentMeta | None


class Compaction(NamedTuple):
    """A compaction boundary in an agent's transcript: it took place before line `line`."""

    session_id: str
    agent_id: str
    line: int
    timestamp: str
    trigger: str | None
    pre_tokens: int | None
    post_tokens: int | None


@dataclass(slots=True)
class Transcript:
    """What one file says.

    Attributes:
        is_recovered: Whether `kv-pipeline recover` wrote it: structure without content.
    """

    answers: list[AnswerRecord] = field(default_factory=list)
    calls: list[AgentCall] = field(default_factory=list)
    outcomes: list[AgentOutcome] = field(default_factory=list)
    agents: list[AgentFile] = field(default_factory=list)
    compactions: list[Compaction] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    is_recovered: bool = False


def read_transcript(path: Path, source: str) -> Transcript:
    """Read one transcript; lines that can't be used are listed, not raised.

    Args:
        path: A `<session>.jsonl` or `agent-<id>.jsonl` file.
        source: Its id in the landing folder, for what is reported.
    """
    reading = _Reading(path, source)
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "it is no regular file")
        with path.open("rb", buffering=lines.BUFFER_BYTES) as file:
            for number, line in enumerate(lines.lines_of(file), start=1):
                reading.line(number, line)
    except OSError as error:
        found = f"the file can't be read: {error.strerror}"
        reading.result.skips.append(Skip(source, None, "unreadable_file", found, "Check its permissions."))
    reading.finish()
    return reading.result


class _Reading:
    """The state of reading one file from top to bottom."""

    def __init__(self, path: Path, source: str) -> None:
        self.result = Transcript()
        self._path, self._source = path, source
        self._is_agent_file = path.name.startswith("agent-")
        self._session_id = None if self._is_agent_file else safe_name(path.stem)
        self._agent_id = printable(path.stem.removeprefix("agent-")) if self._is_agent_file else MAIN_AGENT
        self._seen: dict[tuple[str, str], int] = {}
        self._compacted: set[tuple[str, str]] = set()
        self._chain_of: dict[str, str] = {}
        self._is_fork = False
        self._is_warmup: bool | None = None
        self._max_line_bytes = lines.max_line_bytes()

    def line(self, number: int, line: bytes) -> None:
        if len(line) > self._max_line_bytes:
            self._skip(number, "long_line", f"the line is longer than {self._max_line_bytes:,} bytes")
            return
        line = line.removeprefix(lines.BOM) if number == 1 else line
        # Most lines are one of these two, and name themselves near their beginning.
        if not (b'"user"' in line or b'"assistant"' in line or any(word in line for word in _ALSO_WANTED)):
            self._check(number, line)
            return
        try:
            record, is_odd = decode_record(line)
        except _UNUSABLE:
            self._broken(number, line)
            return
        if is_odd:
            found, remedy = "a field has an unexpected type", "The rest of the line is used."
            self.result.skips.append(Skip(self._source, number, "odd_record", found, remedy, is_left_out=False))
        self._record(number, record)

    def finish(self) -> None:
        if self._is_agent_file and self._session_id is not None:
            agent = AgentFile(self._session_id, self._agent_id, self._is_fork, bool(self._is_warmup), self._read_meta())
            self.result.agents.append(agent)

    def _check(self, number: int, line: bytes) -> None:
        """Records without structure are not parsed, but a cut-off line is still noticed."""
        stripped = line.strip()
        if stripped and not (stripped.startswith(b"{") and stripped.endswith(b"}")):
            self._broken(number, line)

    def _broken(self, number: int, line: bytes) -> None:
        if line.endswith(b"\n"):
            self._skip(number, "broken_line", "the line is not JSON")
        else:
            self._skip(number, "unfinished_line", "the last line is cut off", "Run again when it is complete.")

    def _skip(self, number: int, reason: str, found: str, remedy: str = "The other lines are used.") -> None:
        self.result.skips.append(Skip(self._source, number, reason, found, remedy))

    def _record(self, number: int, record: Record) -> None:
        if self._is_agent_file and self._session_id is None:
            self._session_id = self._session_of(record)
        self.result.is_recovered |= record.is_recovered
        match record.type:
            case "fork-context-ref":
                self._is_fork = True
            case "assistant":
                self._assistant(number, record)
            case "user":
                self._user(record)
            case "system" if record.subtype == "compact_boundary":
                self._compaction(number, record)

    def _session_of(self, record: Record) -> str | None:
        """An agent's records name its session; failing that, newer clients' folders do."""
        in_folder = self._path.parent.parent.name if self._path.parent.name == _AGENT_FOLDER else None
        session_id = record.session_id or in_folder
        return safe_name(session_id) if session_id else None

    def _agent_of(self, record: Record) -> str:
        """Clients before sub-agents had files of their own wrote them into the session file, as side chains."""
        if self._is_agent_file or not record.is_sidechain:
            return self._agent_id
        chain = record.agent_id or self._chain_of.get(record.parent_uuid or "") or f"sidechain-{record.uuid}"
        if record.uuid is not None:
            self._chain_of[record.uuid] = chain
        return chain

    def _assistant(self, number: int, record: Record) -> None:
        message, session = record.message, self._session_id
        agent = self._agent_of(record)
        if record.is_api_error_message or (message is not None and message.model == _SYNTHETIC_MODEL):
            return  # the client's own words, not an answer
        if message is None or not message.id:
            self._skip(number, "no_message_id", "an assistant record has no message id")
            return
        if session is None:
            self._skip(number, "no_session_id", "nothing so far names the session that this agent belongs to")
            return
        known = self._seen.setdefault((agent, message.id), len(self.result.answers))
        if known == len(self.result.answers):
            self.result.answers.append(AnswerRecord(session, agent, number, message.id, record.timestamp or ""))
        self._note_miss(known, bytes(message.diagnostics))
        self.result.calls.extend(_agent_calls(session, agent, bytes(message.content)))

    def _note_miss(self, answer: int, diagnostics: bytes) -> None:
        if not diagnostics.startswith(b"{"):
            return
        miss = decode_leniently(diagnostics, Diagnostics).cache_miss_reason
        if miss is not None and self.result.answers[answer].cache_miss_reason is None:
            reason = None if miss.type is None else miss.type if miss.type in MISS_REASONS else "other"
            self.result.answers[answer] = self.result.answers[answer]._replace(
                cache_miss_reason=reason, cache_missed_input_tokens=miss.cache_missed_input_tokens
            )

    def _user(self, record: Record) -> None:
        content = bytes(record.message.content) if record.message else b"null"
        if self._is_warmup is None:
            self._is_warmup = content == b'"Warmup"'
        if self._session_id is None:
            return
        self._agent_of(record)
        result = _agent_result(bytes(record.tool_use_result))
        if result is not None:
            self.result.outcomes.append(AgentOutcome(self._session_id, _tool_use_id(content), result))

    def _compaction(self, number: int, record: Record) -> None:
        if self._session_id is None:
            return
        agent, facts = self._agent_of(record), record.compact_metadata or CompactMetadata()
        identity = (agent, record.timestamp or record.uuid or str(number))
        if identity in self._compacted:  # a repeated line, or a resumed session's copy of its history
            return
        self._compacted.add(identity)
        boundary = Compaction(
            session_id=self._session_id,
            agent_id=agent,
            line=number,
            timestamp=record.timestamp or "",
            trigger=facts.trigger,
            pre_tokens=facts.pre_tokens,
            post_tokens=facts.post_tokens,
        )
        self.result.compactions.append(boundary)

    def _read_meta(self) -> AgentMeta | None:
        path = self._path.with_name(self._path.name.removesuffix(".jsonl") + ".meta.json")
        try:
            return decode_leniently(path.read_bytes(), AgentMeta)
        except FileNotFoundError:
            return None
        except (OSError, *_UNUSABLE):
            found, remedy = "it is not a JSON object", "The sub-agent is linked by its caller's transcript instead."
            skip = Skip(f"{self._source} (meta)", None, "broken_meta", found, remedy, is_left_out=False)
            self.result.skips.append(skip)
            return None


def _agent_calls(session_id: str, agent_id: str, content: bytes) -> Iterator[AgentCall]:
    if not any(name in content for name in _AGENT_TOOLS_QUOTED):
        return
    for block in _blocks(content):
        if block.type == "tool_use" and block.name in AGENT_TOOLS and block.id is not None:
            yield AgentCall(session_id, agent_id, block.id, _subagent_type(bytes(block.input)))


def _subagent_type(raw_input: bytes) -> str | None:
    try:
        return decode_leniently(raw_input, AgentInput).subagent_type
    except _UNUSABLE:
        return None


def _agent_result(raw: bytes) -> AgentResult | None:
    if b'"agentId"' not in raw:
        return None
    try:
        result = decode_leniently(raw, AgentResult)
    except _UNUSABLE:
        return None
    return result if result.agent_id is not None else None


def _tool_use_id(content: bytes) -> str | None:
    return next((block.tool_use_id for block in _blocks(content) if block.type == "tool_result"), None)


def _blocks(content: bytes) -> list[ContentBlock]:
    try:
        return decode_blocks(content)
    except _UNUSABLE:
        return []
