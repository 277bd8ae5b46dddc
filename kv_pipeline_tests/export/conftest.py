from __future__ import annotations

import pytest

from kv_pipeline_tests.factories import (
    assistant_message,
    bring_up_to_date,
    growing_turns,
    open_store,
    recorded,
    user_message,
    write_database,
    write_transcript,
)


def agent_rows(name, *times, model="m"):
    messages = [user_message(f"Agent {name}, look at the harbour and tell me what you see there.")]
    rows = []
    for number, at_s in enumerate(times):
        rows.append(recorded(f"{name}-{number}", at_s, messages=list(messages), model=model, stream=number == 0))
        messages += [assistant_message("I see ships."), user_message("And what else?")]
    return rows, [(f"{name}-{number}", at_s) for number, at_s in enumerate(times)]


@pytest.fixture(scope="module")
def inbox(tmp_path_factory):
    """Users ada (s1 with sub-agents, s2 with a long gap) and bob (one request)."""
    inbox = tmp_path_factory.mktemp("landing")
    ada, bob = inbox / "ada", inbox / "bob"
    early, early_said = agent_rows("early", -30)
    first, first_said = agent_rows("first", 70, 80, model="small")
    below, below_said = agent_rows("below", 72)
    main = growing_turns("main", 3, output=["text", "tool_use"], stop="tool_use")
    rows = [*early, *main, *first, *below, *growing_turns("late", 2), *growing_turns("late2", 1, 5000)]
    write_database(ada / "requests.db", sorted(rows, key=lambda row: row[1]))
    write_transcript(ada, "s1", [("main-0", 0), ("main-1", 60), ("main-2", 120)])
    write_transcript(ada, "s1", early_said, agent="early")
    write_transcript(ada, "s1", first_said, agent="first", agentType="Explore", toolUseId="toolu_1")
    write_transcript(ada, "s1", below_said, agent="below", toolUseId="toolu_2", parentAgentId="first")
    write_transcript(ada, "s2", [("late-0", 0), ("late-1", 60), ("late2-0", 5000)])
    write_database(bob / "requests.db", growing_turns("main", 1, 500))
    write_transcript(bob, "s3", [("main-0", 500)])
    return inbox


@pytest.fixture(scope="module")
def store(inbox, tmp_path_factory):
    """Blocks of 16 tokens, so that short texts have some."""
    with pytest.MonkeyPatch.context() as patch:
        made = open_store(tmp_path_factory.mktemp("store"), patch, block_size=16)
        bring_up_to_date(made, inbox)
        yield made
