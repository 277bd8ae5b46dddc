"""From one transcript file to the facts that conversations are built from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kv_pipeline.errors import Skip
from kv_pipeline.sources.transcripts.records import (
    AGENT_TOOLS,
    AgentMeta,
    AgentResult,
    CompactMetadata,
    Record,
    blocks_decoder,
    input_decoder,
    meta_decoder,
    record_decoder,
    result_decoder,
)

MAIN_AGENT: Final = "main"
_SYNTHETIC_MODEL: Final = "<synthetic>"
_WANTED: Final = (b'"assistant"', b'"compact_boundary"', b'"toolUseResult"', b'"fork-context-ref"', b'"user"')


class AnswerRecord(NamedTuple):
    """First record of an assistant message: agent `agent_id` of session `session_id` received it."""

    session_id: str
    agent_id: str
    line: int
    message_id: str
    timestamp: str


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
    """What one file says."""

    answers: list[AnswerRecord] = field(default_factory=list)
    calls: list[AgentCall] = field(default_factory=list)
    outcomes: list[AgentOutcome] = field(default_factory=list)
    agents: list[AgentFile] = field(default_factory=list)
    compactions: list[Compaction] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)


def read_transcript(path: Path, source: str) -> Transcript:
    """Read one transcript; lines that can't be used are listed, not raised.

    Args:
        path: A `<session>.jsonl` or `agent-<id>.jsonl` file.
        source: Its id in the landing folder, for what is reported.
    """
    reading = _Reading(path, source)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
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
        self._session_id = None if self._is_agent_file else path.stem
        self._agent_id = path.stem.removeprefix("agent-") if self._is_agent_file else MAIN_AGENT
        self._seen: set[tuple[str, str]] = set()
        self._chain_of: dict[str, str] = {}
        self._is_fork = False
        self._is_warmup: bool | None = None

    def line(self, number: int, line: bytes) -> None:
        if not any(word in line for word in _WANTED):
            self._check(number, line)
            return
        try:
            record = record_decoder.decode(line)
        except msgspec.ValidationError:
            self._skip(number, "odd_record", "a field has an unexpected type")
        except (msgspec.DecodeError, RecursionError):
            self._broken(number, line)
        else:
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
            self._session_id = record.session_id
        match record.type:
            case "fork-context-ref":
                self._is_fork = True
            case "assistant":
                self._assistant(number, record)
            case "user":
                self._user(record)
            case "system" if record.subtype == "compact_boundary":
                self._compaction(number, record)

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
        if message is None or session is None or message.id is None:
            self._skip(number, "no_message_id", "an assistant record has no message id")
            return
        agent = self._agent_of(record)
        if message.model == _SYNTHETIC_MODEL or record.is_api_error_message:
            return
        if (agent, message.id) not in self._seen:
            self._seen.add((agent, message.id))
            answer = AnswerRecord(session, agent, number, message.id, record.timestamp or "")
            self.result.answers.append(answer)
        self.result.calls.extend(_agent_calls(session, agent, bytes(message.content)))

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
        facts = record.compact_metadata or CompactMetadata()
        boundary = Compaction(
            session_id=self._session_id,
            agent_id=self._agent_of(record),
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
            return meta_decoder.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError):
            remedy = "The sub-agent is linked by its caller's transcript instead."
            self.result.skips.append(
                Skip(
                    f"{self._source} (meta)",
                    None,
                    "broken_meta",
                    "it is not usable",
                    remedy,
                    is_left_out=False,
                )
            )
            return None


def _agent_calls(session_id: str, agent_id: str, content: bytes) -> Iterator[AgentCall]:
    if not any(f'"{name}"'.encode() in content for name in AGENT_TOOLS):
        return
    try:
        blocks = blocks_decoder.decode(content)
    except msgspec.MsgspecError:
        return
    for block in blocks:
        if block.type == "tool_use" and block.name in AGENT_TOOLS and block.id is not None:
            yield AgentCall(session_id, agent_id, block.id, _subagent_type(bytes(block.input)))


def _subagent_type(raw_input: bytes) -> str | None:
    try:
        return input_decoder.decode(raw_input).subagent_type
    except msgspec.MsgspecError:
        return None


def _agent_result(raw: bytes) -> AgentResult | None:
    if b'"agentId"' not in raw:
        return None
    try:
        result = result_decoder.decode(raw)
    except msgspec.MsgspecError:
        return None
    return result if result.agent_id is not None else None


def _tool_use_id(content: bytes) -> str | None:
    try:
        blocks = blocks_decoder.decode(content)
    except msgspec.MsgspecError:
        return None
    return next((block.tool_use_id for block in blocks if block.type == "tool_result"), None)
