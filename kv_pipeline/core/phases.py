"""Phases of a conversation, as studies of agent traffic report them.

    warm_up     agents of one request that no tool call names: clients send them to fill the cache or name a session
    main        the main thread; where an answer edits a file or ends planning, in two parts:
    plan          up to and including the first answer that edits a file or ends planning
    execution     everything after it
    sub_agent   agents that a tool call started, by their type (`Plan` and `Explore` are types of their own)
    unlinked    other agents that no tool call names

Source of tool names: code.claude.com, "Tools reference".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from kv_pipeline.core.context import AGENT

ENDS_PLANNING: Final = ("Edit", "ExitPlanMode", "MultiEdit", "NotebookEdit", "Write")
"""Tools whose first call ends the plan."""


def with_phases(requests: pl.DataFrame, agents: pl.DataFrame) -> pl.DataFrame:
    """Requests with the phase they belong to.

    Args:
        requests: One row a request: conversation_id, agent_id, agent_request_index; and answer_tools, the names of the
            tools that its answer calls, where they are known.
        agents: Rows of AGENTS of these conversations. A request of an agent that is not there is unlinked.

    Returns:
        The same rows in the same order with phase and subagent_type (null but for sub-agents).
    """
    facts = agents.select(*AGENT, "link", "n_requests", "subagent_type")
    is_warm_up = (pl.col("link") == "none") & (pl.col("n_requests") == 1)
    is_sub_agent = pl.col("link").is_in(["meta", "tool_result", "prompt"])
    phase = (
        pl.when(is_warm_up).then(pl.lit("warm_up"))
        .when(pl.col("link") == "main").then(_main_phase(requests))
        .when(is_sub_agent).then(pl.lit("sub_agent"))
        .otherwise(pl.lit("unlinked"))
    )  # fmt: skip
    return (
        requests.join(facts, on=AGENT, how="left", maintain_order="left")
        .with_columns(phase=phase, subagent_type=pl.when(is_sub_agent).then("subagent_type"))
        .drop("link", "n_requests")
    )


def _main_phase(requests: pl.DataFrame) -> pl.Expr:
    """A main thread that edits nothing and plans nothing has no phases."""
    if "answer_tools" not in requests.columns:
        return pl.lit("main")
    ends = pl.col("answer_tools").list.eval(pl.element().is_in(ENDS_PLANNING)).list.any().fill_null(value=False)
    first_end = pl.col("agent_request_index").filter(ends).min().over(AGENT)
    is_execution = pl.col("agent_request_index") > first_end
    part = pl.when(is_execution).then(pl.lit("execution")).otherwise(pl.lit("plan"))
    return pl.when(first_end.is_null()).then(pl.lit("main")).otherwise(part)


def phase_summary(requests: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Requests, tokens and shared prefixes of each phase.

    Args:
        requests: As `with_phases` gives, with the prompt_tokens and output_tokens that are to be summed, and n_blocks
            and agent_shared_blocks of TOKENIZED_BLOCKS.
        by: Columns to group by besides phase and subagent_type, for instance conversation_id.

    Returns:
        One row per group, phase and sub-agent type, sorted: n_agents, n_requests, prompt_tokens, output_tokens and
        shared_prefix_share (blocks shared with the agent's request before / all blocks, 0 if there are none).
    """
    keys = [*by, "phase", "subagent_type"]
    shared, blocks = pl.col("agent_shared_blocks").cast(pl.Int64).sum(), pl.col("n_blocks").cast(pl.Int64).sum()
    return (
        requests.group_by(keys)
        .agg(
            n_agents=pl.struct(AGENT).n_unique().cast(pl.UInt32),
            n_requests=pl.len().cast(pl.UInt32),
            prompt_tokens=pl.col("prompt_tokens").cast(pl.Int64).sum(),
            output_tokens=pl.col("output_tokens").cast(pl.Int64).sum(),
            shared_prefix_share=pl.when(blocks == 0).then(0.0).otherwise(shared / blocks),
        )
        .sort(keys)
    )
