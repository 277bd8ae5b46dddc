"""Transcripts of one user as frames, with each answer, agent and compaction counted once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.queries import collected
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.transcripts import TRANSCRIPT_AGENTS, TRANSCRIPT_ANSWERS, TRANSCRIPT_COMPACTIONS
from kv_pipeline.sources.transcripts.reader import MAIN_AGENT, AgentCall, AgentFile, AgentOutcome, Transcript
from kv_pipeline.sources.transcripts.records import AgentMeta, AgentResult

WARMUP_TYPE: Final = "warmup"
"""Type given to agents that no tool call names and whose prompt is the client's `Warmup`."""

_AGENT: Final = ["session_id", "agent_id"]
ANSWERS_SCHEMA: Final = polars_schema(TRANSCRIPT_ANSWERS)
AGENTS_SCHEMA: Final = polars_schema(TRANSCRIPT_AGENTS)
COMPACTIONS_SCHEMA: Final = polars_schema(TRANSCRIPT_COMPACTIONS)


class TranscriptFrames(NamedTuple):
    """What a user's transcripts say.

    Attributes:
        answers: One row per (session, agent, message): where an answer was received.
        agents: One row per (session, agent), main threads included.
        compactions: One row per compaction boundary.
    """

    answers: pl.DataFrame
    agents: pl.DataFrame
    compactions: pl.DataFrame


def with_vanished(now: TranscriptFrames, before: TranscriptFrames) -> TranscriptFrames:
    """What transcripts say now, and what those that are gone said before."""
    if all(frame.is_empty() for frame in before):
        return now
    gone = [
        before.answers.join(now.answers, on=_AGENT, how="anti"),
        before.agents.join(now.agents, on=_AGENT, how="anti"),
        before.compactions.join(now.answers, on=_AGENT, how="anti").join(now.compactions, on=_AGENT, how="anti"),
    ]
    return TranscriptFrames(*(pl.concat([new, old]) for new, old in zip(now, gone, strict=True)))


def split_given_way(transcripts: Sequence[Transcript]) -> tuple[list[Transcript], list[Transcript]]:
    """Transcripts that count, and recovered ones that don't: the client's own tell of their session.

    They do so by the session's name, or by an answer that both have.
    """
    recovered = [transcript for transcript in transcripts if transcript.is_recovered]
    if not recovered:
        return list(transcripts), []
    own = [answer for transcript in transcripts if not transcript.is_recovered for answer in transcript.answers]
    sessions, messages = {answer.session_id for answer in own}, {answer.message_id for answer in own}
    sessions |= {a.session_id for transcript in recovered for a in transcript.answers if a.message_id in messages}
    counting: list[Transcript] = []
    given_way: list[Transcript] = []
    for transcript in transcripts:
        gives_way = transcript.is_recovered and any(answer.session_id in sessions for answer in transcript.answers)
        (given_way if gives_way else counting).append(transcript)
    return counting, given_way


def without_given_way(
    frames: TranscriptFrames, counting: Sequence[Transcript], given_way: Sequence[Transcript]
) -> TranscriptFrames:
    """What transcripts said before, less what those said that give way now."""
    if not given_way:
        return frames
    own = {answer.session_id for transcript in counting for answer in transcript.answers}
    rows = {(answer.session_id, answer.agent_id) for transcript in given_way for answer in transcript.answers}
    agents = pl.DataFrame(sorted(rows), schema=dict.fromkeys(_AGENT, pl.String), orient="row")
    sessions = agents.filter(~pl.col("session_id").is_in(sorted(own)))
    kept = (frame.join(agents, on=_AGENT, how="anti").join(sessions, on="session_id", how="anti") for frame in frames)
    return TranscriptFrames(*kept)


def transcript_frames(transcripts: Sequence[Transcript]) -> TranscriptFrames:
    """Gather a user's transcripts; a resumed session repeats calls and results, the first of each counts."""
    answers = _numbered([transcript.answers for transcript in transcripts], ANSWERS_SCHEMA)
    compactions = _numbered([transcript.compactions for transcript in transcripts], COMPACTIONS_SCHEMA)
    answers, compactions = _merged(answers, compactions)
    return TranscriptFrames(answers, _agents(transcripts, answers), compactions)


def _numbered(records: Sequence[Sequence[tuple[object, ...]]], schema: pl.Schema) -> pl.DataFrame:
    """Records with the number of their file."""
    rows = [(*record, number) for number, of_file in enumerate(records) for record in of_file]
    return pl.DataFrame(rows, schema={**schema, "file": pl.UInt32}, orient="row")


def _merged(answers: pl.DataFrame, compactions: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Answers and compactions with copies of a session in several files taken as one.

    The file with most answers goes before the others, whose lines are counted on from its last.
    """
    columns = [*_AGENT, "file", "line"]
    records = answers.lazy(), compactions.lazy()
    sizes = answers.lazy().group_by(*_AGENT, "file").agg(n=pl.len())
    before = (
        pl.concat([frame.select(columns) for frame in records])
        .group_by(*_AGENT, "file")
        .agg(n_lines=pl.col("line").max())
        .join(sizes, on=[*_AGENT, "file"], how="left")
        .sort(pl.col("n").fill_null(0), -pl.col("file").cast(pl.Int64), descending=True)
        .select(*_AGENT, "file", offset=pl.col("n_lines").cum_sum().over(_AGENT) - pl.col("n_lines"))
        .pipe(collected)
        .lazy()
    )
    is_copy = pl.col("compacted_at").is_in([""]).not_() & ~pl.struct(*_AGENT, "compacted_at").is_first_distinct()
    all_answers, all_compactions = (
        frame.join(before, on=[*_AGENT, "file"], maintain_order="left")
        .sort(pl.col("offset") > 0, maintain_order=True)
        .with_columns(line=pl.col("line") + pl.col("offset"))
        .drop("file", "offset")
        for frame in records
    )
    each_once = all_answers.unique([*_AGENT, "message_id"], keep="first", maintain_order=True)
    return collected(each_once), collected(all_compactions.filter(~is_copy))


_Key = tuple[str, str]
"""Session and agent."""


@dataclass(slots=True)
class _Links:
    """What transcripts say of who started whom, each call and result counted once."""

    calls: dict[_Key, AgentCall] = field(default_factory=dict)
    outcomes: dict[_Key, AgentOutcome] = field(default_factory=dict)
    files: dict[_Key, AgentFile] = field(default_factory=dict)

    @classmethod
    def of(cls, transcripts: Sequence[Transcript]) -> _Links:
        links = cls()
        for transcript in transcripts:
            for call in transcript.calls:
                links._note_call(call)
            for outcome in transcript.outcomes:
                links.outcomes.setdefault((outcome.session_id, outcome.result.agent_id or ""), outcome)
            links.files.update({(agent.session_id, agent.agent_id): agent for agent in transcript.agents})
        return links

    def _note_call(self, call: AgentCall) -> None:
        """A fork's file repeats the call that started it: the caller is whoever is nearest to the main thread."""
        known = self.calls.get((call.session_id, call.tool_use_id))
        if known is None or (call.agent_id == MAIN_AGENT and known.agent_id != MAIN_AGENT):
            self.calls[call.session_id, call.tool_use_id] = call


@dataclass(slots=True)
class _Agent:
    """A row of the agents frame; the defaults are the main thread's."""

    session_id: str
    agent_id: str
    parent_agent_id: str | None = None
    subagent_type: str | None = None
    link: str = "main"
    tool_use_id: str | None = None
    is_fork: bool = False
    depth: int = 0
    status: str | None = None
    duration_ms: int | None = None
    total_tokens: int | None = None
    tool_use_count: int | None = None


def _agents(transcripts: Sequence[Transcript], answers: pl.DataFrame) -> pl.DataFrame:
    links = _Links.of(transcripts)
    known = {*links.files, *answers.select(_AGENT).iter_rows()}
    known |= {(session_id, MAIN_AGENT) for session_id, _ in known}
    agents = {key: _agent(key, links) for key in sorted(known)}
    for key, agent in agents.items():
        agent.depth = _depth(key, agents)
    return pl.DataFrame([astuple(agent) for agent in agents.values()], schema=AGENTS_SCHEMA, orient="row")


def _agent(key: _Key, links: _Links) -> _Agent:
    session_id, agent_id = key
    if agent_id == MAIN_AGENT:
        return _Agent(session_id, agent_id)
    file, outcome = links.files.get(key), links.outcomes.get(key)
    meta = (file.meta if file else None) or AgentMeta()
    result = outcome.result if outcome else AgentResult()
    tool_use_id = meta.tool_use_id or (outcome.tool_use_id if outcome else None)
    call = links.calls.get((session_id, tool_use_id)) if tool_use_id else None
    caller = call.agent_id if call and call.agent_id != agent_id else None
    named_type = meta.agent_type or (call.subagent_type if call else None) or result.agent_type
    return _Agent(
        session_id,
        agent_id,
        parent_agent_id=meta.parent_agent_id or caller or MAIN_AGENT,
        subagent_type=named_type or (WARMUP_TYPE if file and file.is_warmup else None),
        link="meta" if meta.tool_use_id else "tool_result" if tool_use_id else "none",
        tool_use_id=tool_use_id,
        is_fork=meta.is_fork or bool(file and file.is_fork),
        status=result.status,
        duration_ms=result.total_duration_ms,
        total_tokens=result.total_tokens,
        tool_use_count=result.total_tool_use_count,
    )


def _depth(key: _Key, agents: Mapping[_Key, _Agent]) -> int:
    """Steps to the main thread; a parent that is unknown, or a circle, ends the climb."""
    seen = {key}
    depth = 0
    while (parent := agents[key].parent_agent_id) is not None:
        depth += 1
        key = (key[0], parent)
        if key in seen or key not in agents:
            break
        seen.add(key)
    return depth
