"""Transcripts of one user as frames, with each answer, agent and compaction counted once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.sources.transcripts.reader import MAIN_AGENT, AgentCall, AgentFile, AgentOutcome, Transcript

ANSWERS_SCHEMA: Final = pl.Schema(
    {"session_id": pl.String, "agent_id": pl.String, "line": pl.Int64, "message_id": pl.String, "answered_at": pl.String}
)
COMPACTIONS_SCHEMA: Final = pl.Schema(
    {
        "session_id": pl.String, "agent_id": pl.String, "line": pl.Int64, "compacted_at": pl.String,
        "trigger": pl.String, "pre_tokens": pl.Int64, "post_tokens": pl.Int64,
    }
)  # fmt: skip
AGENTS_SCHEMA: Final = pl.Schema(
    {
        "session_id": pl.String, "agent_id": pl.String, "parent_agent_id": pl.String, "subagent_type": pl.String,
        "link": pl.String, "tool_use_id": pl.String, "is_fork": pl.Boolean, "depth": pl.UInt32, "status": pl.String,
        "duration_ms": pl.Int64, "total_tokens": pl.Int64, "tool_use_count": pl.Int64,
    }
)  # fmt: skip


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


def transcript_frames(transcripts: Sequence[Transcript]) -> TranscriptFrames:
    """Gather a user's transcripts; a resumed session repeats calls and results, the first of each counts."""
    answers = pl.DataFrame(
        [answer for t in transcripts for answer in t.answers], schema=ANSWERS_SCHEMA, orient="row"
    )
    compactions = pl.DataFrame(
        [compaction for t in transcripts for compaction in t.compactions], schema=COMPACTIONS_SCHEMA, orient="row"
    )
    return TranscriptFrames(answers, _agents(transcripts, answers), compactions)


def _agents(transcripts: Sequence[Transcript], answers: pl.DataFrame) -> pl.DataFrame:
    calls: dict[tuple[str, str], AgentCall] = {}
    outcomes: dict[tuple[str, str], AgentOutcome] = {}
    for transcript in transcripts:
        for call in transcript.calls:
            known = calls.get((call.session_id, call.tool_use_id))
            # A fork's file repeats the call that started it; the caller is whoever is nearest to the main thread.
            if known is None or (call.agent_id == MAIN_AGENT and known.agent_id != MAIN_AGENT):
                calls[call.session_id, call.tool_use_id] = call
        for outcome in transcript.outcomes:
            outcomes.setdefault((outcome.session_id, outcome.result.agent_id or ""), outcome)
    files = {(agent.session_id, agent.agent_id): agent for t in transcripts for agent in t.agents}
    keys = dict.fromkeys(answers.select("session_id", "agent_id").iter_rows())
    sessions = dict.fromkeys((session, MAIN_AGENT) for session, _ in [*keys, *files])
    rows = {
        key: _agent_row(key, files.get(key), outcomes.get(key), calls) for key in dict.fromkeys([*sessions, *files, *keys])
    }
    return pl.DataFrame(
        [(*row[:7], _depth(key, rows), *row[7:]) for key, row in rows.items()], schema=AGENTS_SCHEMA, orient="row"
    ).sort("session_id", "agent_id")


AgentRow = tuple[str, str, str | None, str | None, str, str | None, bool, str | None, int | None, int | None, int | None]


def _agent_row(
    key: tuple[str, str],
    file: AgentFile | None,
    outcome: AgentOutcome | None,
    calls: dict[tuple[str, str], AgentCall],
) -> AgentRow:
    session_id, agent_id = key
    if agent_id == MAIN_AGENT:
        return (session_id, agent_id, None, None, "main", None, False, None, None, None, None)
    meta = file.meta if file else None
    tool_use_id = (meta and meta.tool_use_id) or (outcome and outcome.tool_use_id)
    call = calls.get((session_id, tool_use_id)) if tool_use_id else None
    caller = call.agent_id if call and call.agent_id != agent_id else None
    link = "meta" if meta and meta.tool_use_id else "tool_result" if tool_use_id else "none"
    result = outcome.result if outcome else None
    return (
        session_id,
        agent_id,
        (meta and meta.parent_agent_id) or caller or MAIN_AGENT,
        (meta and meta.agent_type) or (call and call.subagent_type) or (result and result.agent_type)
        or ("warmup" if file and file.is_warmup else None),
        link,
        tool_use_id,
        bool((file and file.is_fork) or (meta and meta.is_fork)),
        result and result.status,
        result and result.total_duration_ms,
        result and result.total_tokens,
        result and result.total_tool_use_count,
    )  # fmt: skip


def _depth(key: tuple[str, str], rows: dict[tuple[str, str], AgentRow]) -> int:
    """Steps to the main thread; a parent that is unknown, or a circle, ends the climb."""
    seen = {key}
    depth = 0
    while (parent := rows[key][2]) is not None:
        depth += 1
        key = (key[0], parent)
        if key in seen or key not in rows:
            break
        seen.add(key)
    return depth
