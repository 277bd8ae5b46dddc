from __future__ import annotations

import polars as pl
import pytest

from kv_pipeline.core.phases import phase_summary, with_phases

AGENTS = pl.DataFrame(
    [
        ("u/c", "main", "main", 4, None),
        ("u/c", "w", "none", 1, "warmup"),
        ("u/c", "stray", "none", 2, None),
        ("u/c", "e1", "meta", 1, "Explore"),
        ("u/c", "e2", "tool_result", 1, "Explore"),
        ("u/c", "p", "tool_result", 1, "Plan"),
        ("u/d", "main", "main", 1, None),
    ],
    schema=["conversation_id", "agent_id", "link", "n_requests", "subagent_type"],
    orient="row",
)


def requests_of(*rows, **columns):
    """Requests of (conversation, agent, index among the agent's)."""
    frame = pl.DataFrame(
        rows,
        schema={"conversation_id": pl.String, "agent_id": pl.String, "agent_request_index": pl.UInt32},
        orient="row",
    )
    numbers = {"prompt_tokens": 100, "output_tokens": 10, "n_blocks": 4, "agent_shared_blocks": 3} | columns
    return frame.with_columns(
        **{name: v if isinstance(v, pl.Series) else pl.lit(v, dtype=pl.UInt32) for name, v in numbers.items()}
    )


MAIN = [("u/c", "main", index) for index in range(4)]


@pytest.mark.parametrize(
    ("agent", "phase", "subagent_type"),
    [
        ("main", "main", None),
        ("w", "warm_up", None),
        ("stray", "unlinked", None),
        ("e1", "sub_agent", "Explore"),
        ("p", "sub_agent", "Plan"),
        ("nobody", "unlinked", None),
    ],
)
def test_phase_of_an_agent(agent, phase, subagent_type):
    found = with_phases(requests_of(("u/c", agent, 0)), AGENTS)
    assert found.select("phase", "subagent_type").rows() == [(phase, subagent_type)]


@pytest.mark.parametrize(
    ("answer_tools", "phases"),
    [
        ([["Read"], ["Edit", "Read"], [], ["Write"]], ["plan", "plan", "execution", "execution"]),
        ([["ExitPlanMode"], ["Edit"], [], []], ["plan", "execution", "execution", "execution"]),
        ([["Read"], [], None, ["Editor"]], ["main"] * 4),
    ],
    ids=["edit", "plan mode", "never"],
)
def test_plan_and_execution_where_tools_are_known(answer_tools, phases):
    tools = pl.Series(answer_tools, dtype=pl.List(pl.String))
    assert with_phases(requests_of(*MAIN, answer_tools=tools), AGENTS)["phase"].to_list() == phases


def test_only_an_agents_own_edits_end_its_plan():
    rows = [("u/c", "main", 0), ("u/c", "e1", 0), ("u/d", "main", 0), ("u/c", "main", 1)]
    tools = pl.Series([["Write"], ["Edit"], ["Read"], []], dtype=pl.List(pl.String))
    found = with_phases(requests_of(*rows, answer_tools=tools), AGENTS)["phase"].to_list()
    assert found == ["plan", "sub_agent", "main", "execution"]


def test_rows_stay_in_order():
    rows = [("u/d", "main", 0), ("u/c", "e1", 0), ("u/c", "main", 0)]
    assert (
        with_phases(requests_of(*rows), AGENTS).select("conversation_id", "agent_id", "agent_request_index").rows()
        == rows
    )


def test_sums_of_phases():
    rows = [*MAIN, ("u/c", "e1", 0), ("u/c", "e2", 0), ("u/c", "w", 0), ("u/d", "main", 0)]
    shared = pl.Series([0, 4, 4, 4, 0, 1, 0, 0], dtype=pl.UInt32)
    blocks = pl.Series([4, 4, 4, 4, 2, 2, 0, 8], dtype=pl.UInt32)
    phased = with_phases(requests_of(*rows, agent_shared_blocks=shared, n_blocks=blocks), AGENTS)
    assert phase_summary(phased).rows() == [
        ("main", None, 2, 5, 500, 50, 0.5),
        ("sub_agent", "Explore", 2, 2, 200, 20, 0.25),
        ("warm_up", None, 1, 1, 100, 10, 0.0),
    ]
    by_conversation = phase_summary(phased, ["conversation_id"]).select("conversation_id", "phase", "n_requests")
    assert by_conversation.rows() == [
        ("u/c", "main", 4),
        ("u/c", "sub_agent", 2),
        ("u/c", "warm_up", 1),
        ("u/d", "main", 1),
    ]
