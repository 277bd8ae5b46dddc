from __future__ import annotations

import pytest

from kv_pipeline.sources.transcripts.frames import transcript_frames
from kv_pipeline.sources.transcripts.reader import (
    AgentCall,
    AgentFile,
    AgentOutcome,
    AnswerRecord,
    Compaction,
    Transcript,
)
from kv_pipeline.sources.transcripts.records import AgentMeta, AgentResult


def file(agent_id: str, **meta: object) -> AgentFile:
    return AgentFile("s1", agent_id, False, False, AgentMeta(**meta) if meta else None)  # type: ignore[arg-type]


def outcome(agent_id: str, tool_use_id: str | None, **result: object) -> AgentOutcome:
    return AgentOutcome("s1", tool_use_id, AgentResult(agent_id=agent_id, **result))  # type: ignore[arg-type]


def agent_rows(*transcripts: Transcript) -> dict[str, dict[str, object]]:
    return {row["agent_id"]: row for row in transcript_frames(transcripts).agents.to_dicts()}


def test_nothing_gives_empty_frames():
    assert [frame.height for frame in transcript_frames([])] == [0, 0, 0]


def test_a_sub_agent_is_tied_to_its_caller_by_the_result_that_names_it():
    caller = Transcript(
        answers=[AnswerRecord("s1", "main", 1, "m1", "")],
        calls=[AgentCall("s1", "main", "t1", "Explore")],
        outcomes=[outcome("a1", "t1", status="completed"), outcome("a1", "t9", status="copied")],
    )
    agent = agent_rows(caller, Transcript(agents=[file("a1")]))["a1"]
    assert (agent["parent_agent_id"], agent["subagent_type"], agent["link"]) == ("main", "Explore", "tool_result")
    assert (agent["depth"], agent["status"]) == (1, "completed")


def test_what_the_client_wrote_beside_it_comes_first():
    meta = file("a2", agent_type="Plan", tool_use_id="t2", parent_agent_id="a1", is_fork=True)
    agent = agent_rows(Transcript(agents=[file("a1"), meta]))["a2"]
    assert (agent["subagent_type"], agent["link"], agent["is_fork"], agent["depth"]) == ("Plan", "meta", True, 2)


@pytest.mark.parametrize("parents", [("a2", "a1"), ("a1", "a2"), ("gone", "a1")], ids=["circle", "itself", "unknown"])
def test_parents_that_lead_nowhere_end_the_climb(parents):
    first, second = (file(f"a{n}", parent_agent_id=parent) for n, parent in enumerate(parents, 1))
    rows = agent_rows(Transcript(agents=[first, second]))
    assert all(1 <= row["depth"] <= 3 for name, row in rows.items() if name != "main")  # type: ignore[operator]
    assert rows["main"]["depth"] == 0


def test_compactions_are_rows():
    boundary = Compaction("s1", "main", 5, "2025-01-01T00:00:00Z", None, 2**63 - 1, None)
    assert transcript_frames([Transcript(compactions=[boundary])]).compactions.rows() == [tuple(boundary)]
