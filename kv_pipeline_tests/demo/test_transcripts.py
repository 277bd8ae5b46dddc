from __future__ import annotations

import json
from collections import Counter

import pytest

from kv_pipeline_tests.demo.rows import all_rows, databases, message_id, records, rows, transcripts


def named_ids(paths) -> Counter:
    """How many transcript files name each message id."""
    files = Counter()
    for path in paths:
        files.update({r["message"]["id"] for r in records(path) if r["type"] == "assistant"})
    return files


def conversation(landing, kind):
    return next(c for c in landing.truth.conversations if any(agent.kind == kind for agent in c.agents))


def session_file(landing, c, number=0):
    return next(landing.root.glob(f"{c.user}/projects/*/{c.session_ids[number]}.jsonl"))


def test_every_named_message_is_in_a_database_of_its_user(landing):
    for user in ("ada", "grace", "linus"):
        paths = [path for path in transcripts(landing.root) if path.is_relative_to(landing.root / user)]
        stored = {
            message_id(json.loads(row["response"]))
            for path in databases(landing.root)
            if path.parent.name == user
            for row in rows(path)
        }
        assert set(named_ids(paths)) <= stored


def test_each_turn_is_named_once_apart_from_copies(landing):
    named = named_ids(transcripts(landing.root))
    assert len(named) == landing.truth.turns
    resumed = next(c for c in landing.truth.conversations if len(c.session_ids) > 1)
    copies = named_ids([session_file(landing, resumed)])
    fork = [p for p in transcripts(landing.root) if records(p)[0]["type"] == "fork-context-ref"]
    inherited = records(fork[0])[1]["message"]["id"]
    assert {i for i, files in named.items() if files > 1} == {*copies, inherited}


def test_refused_attempts_are_noted(landing):
    notes = [r for path in transcripts(landing.root) for r in records(path) if r.get("subtype") == "api_error"]
    noted = {record["uuid"]: record for record in notes}
    resumed_copies = 1  # the refusal before the resumption stands in the new session's file again
    assert len(noted) - resumed_copies == landing.truth.unindexed["failed_attempt"]


def test_leftovers_are_in_no_transcript(landing):
    named = named_ids(transcripts(landing.root))
    unnamed = [row for row in all_rows(landing.root) if message_id(json.loads(row["response"])) not in named]
    assert len(unnamed) == sum(landing.truth.unindexed.values())


def test_agents_have_the_turns_the_truth_says(landing):
    for c in landing.truth.conversations:
        for agent in c.agents:
            if agent.agent_id is None:
                continue
            (path,) = landing.root.glob(f"{c.user}/projects/**/agent-{agent.agent_id}.jsonl")
            named = set(named_ids([path]))
            assert set(agent.message_ids) <= named
            assert len(named) - agent.turns == (agent.kind == "fork")  # a fork's file repeats the call that made it


def test_chain_of_uuids_is_unbroken(landing):
    for path in transcripts(landing.root):
        known: set[str | None] = {None}
        for record in records(path):
            if "uuid" in record:
                assert record["parentUuid"] in known
                assert record["uuid"] not in known
                known.add(record["uuid"])


def test_newer_client_writes_one_record_a_block_and_older_one_a_message(landing):
    sizes = {True: Counter(), False: Counter()}
    for path in transcripts(landing.root):
        is_older = path.is_relative_to(landing.root / "linus")
        sizes[is_older].update(len(r["message"]["content"]) for r in records(path) if r["type"] == "assistant")
    assert set(sizes[False]) == {1}
    assert max(sizes[True]) > 1


def test_sub_agents_of_the_newer_client_have_metadata(landing):
    c = conversation(landing, "fork")
    metas = {p.name.split(".")[0]: json.loads(p.read_bytes()) for p in landing.root.rglob("*.meta.json")}
    assert set(metas) == {f"agent-{agent.agent_id}" for agent in c.agents if agent.agent_id}
    for agent in c.agents:
        if agent.agent_id:
            meta = metas[f"agent-{agent.agent_id}"]
            assert (meta["agentType"], meta.get("parentAgentId")) == (agent.kind, agent.parent_id)
            assert meta["spawnDepth"] == (2 if agent.parent_id else 1)


def test_tool_calls_name_the_linked_agents(landing):
    for c in landing.truth.conversations:
        reported = {
            record["toolUseResult"]["agentId"]
            for record in records(session_file(landing, c))
            if "agentId" in record.get("toolUseResult", {})
        }
        direct = {a.agent_id for a in c.agents if a.is_linked and a.agent_id and not a.parent_id}
        assert reported == direct


def test_fork_begins_with_a_reference_and_its_parents_call(landing):
    c = conversation(landing, "fork")
    fork = next(agent for agent in c.agents if agent.kind == "fork")
    (path,) = landing.root.glob(f"**/agent-{fork.agent_id}.jsonl")
    reference, call, task, *_ = records(path)
    parent = {r["uuid"]: r for r in records(session_file(landing, c)) if "uuid" in r}
    assert reference["type"] == "fork-context-ref"
    assert reference["parentLastUuid"] in parent
    assert call["message"]["stop_reason"] is None
    assert call["message"]["id"] == parent[reference["parentLastUuid"]]["message"]["id"]
    assert call["message"]["content"][0]["id"] == task["message"]["content"][0]["tool_use_id"]


def test_compaction_leaves_a_boundary_and_a_summary(landing):
    found = [r for path in transcripts(landing.root) for r in records(path)]
    (boundary,) = [r for r in found if r.get("subtype") == "compact_boundary"]
    (summary,) = [r for r in found if r.get("isCompactSummary")]
    assert boundary["parentUuid"] is None
    assert boundary["logicalParentUuid"]
    assert boundary["compactMetadata"]["preTokens"] > 1_000
    assert summary["parentUuid"] == boundary["uuid"]


@pytest.mark.parametrize("user", ["grace", "linus"])
def test_resumed_history_repeats_messages_under_new_uuids(landing, user):
    resumed = next(c for c in landing.truth.conversations if c.user == user)
    files = [session_file(landing, resumed, number) for number in range(len(resumed.session_ids))]
    seen: dict[str, list[dict]] = {}
    for path in files:
        for record in records(path):
            if record["type"] == "assistant":
                block = json.dumps(record["message"]["content"][-1])
                seen.setdefault(record["message"]["id"] + block, []).append(record)
    repeated = [group for group in seen.values() if len(group) > 1]
    assert repeated
    for first, second in repeated:
        assert first["uuid"] != second["uuid"]
        assert first["timestamp"] == second["timestamp"]
    assert len(files) == (2 if user == "grace" else 1)
