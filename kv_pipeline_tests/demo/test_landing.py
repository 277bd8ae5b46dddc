from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import datetime

import pytest

from kv_pipeline.demo import EXAMPLE, write_landing
from kv_pipeline_tests.demo.rows import (
    all_rows,
    breakpoints,
    databases,
    dump,
    message_id,
    rows,
    transcripts,
    usage,
)

SMALL = replace(EXAMPLE, users=3, conversations=1, turns=3, has_plants=False)


def contents(root) -> dict[str, object]:
    files = {str(path.relative_to(root)): path.read_bytes() for path in transcripts(root)}
    metas = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.meta.json")}
    return {**files, **metas, **{str(path.relative_to(root)): dump(path) for path in databases(root)}}


def test_same_seed_writes_the_same_folder(tmp_path, landing):
    truth = write_landing(tmp_path, size=EXAMPLE, seed=1)
    assert truth == landing.truth
    assert contents(tmp_path) == contents(landing.root)


def test_another_seed_writes_another_folder(tmp_path):
    first = write_landing(tmp_path / "1", size=SMALL, seed=1)
    second = write_landing(tmp_path / "2", size=SMALL, seed=2)
    assert {c.conversation_id for c in first.conversations}.isdisjoint(c.conversation_id for c in second.conversations)


def test_conversations_do_not_depend_on_how_many_users_follow(tmp_path):
    write_landing(tmp_path / "3", size=SMALL, seed=1)
    write_landing(tmp_path / "1", size=replace(SMALL, users=1), seed=1)
    assert contents(tmp_path / "3" / "ada") == contents(tmp_path / "1" / "ada")


def test_an_existing_user_folder_is_refused(tmp_path):
    (tmp_path / "ada").mkdir()
    with pytest.raises(FileExistsError, match="Choose an empty folder"):
        write_landing(tmp_path, size=SMALL, seed=1)


def test_progress_reaches_the_number_of_turns(tmp_path):
    seen: list[tuple[int, int]] = []
    truth = write_landing(tmp_path, size=SMALL, seed=1, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, truth.turns + 1))
    assert seen[-1][1] == truth.turns


def test_more_users_than_names(tmp_path):
    truth = write_landing(tmp_path, size=replace(SMALL, users=11, turns=1), seed=1)
    assert len({c.user for c in truth.conversations}) == 11


def test_truth_accounts_for_every_row(landing):
    assert sum(c.rows for c in landing.truth.conversations) == sum(landing.truth.databases.values())
    found = {str(path.relative_to(landing.root)): len(rows(path)) for path in databases(landing.root)}
    assert found == landing.truth.databases


def test_every_rare_case_is_planted(landing):
    assert landing.truth.unindexed == {
        "aborted_stream": 1,
        "compaction": 1,
        "failed_attempt": 3,
        "replay_twin": 23,
        "side_request": 3,
    }
    kinds = Counter(agent.kind for c in landing.truth.conversations for agent in c.agents)
    assert kinds == {"main": 6, "Explore": 3, "general-purpose": 2, "fork": 1, "Warmup": 3}
    assert [c.databases for c in landing.truth.conversations if len(c.databases) > 1] == [
        ("ada/requests-1.db", "ada/requests.db")
    ]
    assert sum(len(c.session_ids) > 1 for c in landing.truth.conversations) == 1


def test_only_nested_agents_have_a_parent_and_only_warmups_are_unlinked(landing):
    agents = [agent for c in landing.truth.conversations for agent in c.agents]
    nested = [agent for agent in agents if agent.parent_id]
    assert [(agent.kind, agent.turns) for agent in nested] == [("Explore", 2)]
    assert {agent.kind for agent in agents if not agent.is_linked} == {"Warmup"}


def test_truth_names_the_rows_of_every_turn(landing):
    stored = {message_id(json.loads(row["response"])): row for row in all_rows(landing.root)}
    for c in landing.truth.conversations:
        for agent in c.agents:
            assert len(agent.message_ids) == len(agent.billed_ids) > 0
            for named, billed in zip(agent.message_ids, agent.billed_ids, strict=True):
                assert (named == billed) is (c.generation == "fixed")
                assert json.loads(stored[billed]["body"])["stream"] is True
                assert json.loads(stored[billed]["body"])["messages"] == json.loads(stored[named]["body"])["messages"]


def test_failed_attempts_are_counted(landing):
    codes = Counter(json.loads(row["response"])["statusCode"] for row in all_rows(landing.root))
    assert codes[529] == landing.truth.unindexed["failed_attempt"]


def test_rows_stand_in_time_order(landing):
    for path in databases(landing.root):
        times = [datetime.fromisoformat(row["timestamp"]) for row in rows(path)]
        assert times == sorted(times)


def test_one_user_has_another_utc_offset(landing):
    offsets = {str(path.parent.name): rows(path)[0]["timestamp"][19:] for path in databases(landing.root)}
    assert offsets == {"ada": "Z", "grace": "+02:00", "linus": "Z"}


def test_no_request_has_more_than_four_breakpoints(landing):
    found = Counter(breakpoints(row["body"]) for row in all_rows(landing.root))
    assert max(found) == 4
    assert found[0] == 2 * landing.truth.unindexed["side_request"]  # the title requests, streamed and replayed


def test_usage_is_plausible(landing):
    for row in all_rows(landing.root):
        response = json.loads(row["response"])
        if response["statusCode"] != 200:
            continue
        billed = usage(response)
        prompt = sum(billed[f"{name}input_tokens"] for name in ("", "cache_creation_", "cache_read_"))
        estimate = len(row["body"]) / 3.1
        assert 0.6 * estimate < prompt + 60 < 1.3 * estimate + 60
        assert billed["cache_creation_input_tokens"] == sum(billed["cache_creation"].values())


def test_most_prompt_tokens_are_read_from_the_cache(landing):
    billed = Counter()
    for row in all_rows(landing.root):
        response = json.loads(row["response"])
        if response["statusCode"] == 200:
            billed.update({k: v for k, v in usage(response).items() if k.endswith("input_tokens")})
    assert billed["cache_read_input_tokens"] > billed["cache_creation_input_tokens"] > billed["input_tokens"] > 0


def test_hour_lifetime_belongs_to_one_users_main_agents(landing):
    hour = Counter()
    for path in databases(landing.root):
        for row in rows(path):
            response = json.loads(row["response"])
            if response["statusCode"] == 200:
                hour[path.parent.name] += usage(response)["cache_creation"]["ephemeral_1h_input_tokens"]
    assert hour["grace"] > 0 == hour["ada"] == hour["linus"]


def test_message_ids_are_unique(landing):
    ids = [message_id(json.loads(row["response"])) for row in all_rows(landing.root)]
    known = [found for found in ids if found]
    assert len(known) == len(set(known))


def test_a_log_has_one_line_a_request_in_the_order_of_their_ends(landing):
    ((name, n_lines),) = landing.truth.logs.items()
    pairs = [json.loads(line) for line in (landing.root / name).read_text().splitlines()]
    assert len(pairs) == n_lines
    ends = [pair["response"]["timestamp"] for pair in pairs if pair["response"]]
    assert ends == sorted(ends)
    assert [n for n, pair in enumerate(pairs) if pair["response"] is None] == [n_lines - 1]
    assert Counter(pair["response"]["status_code"] for pair in pairs if pair["response"]) == {200: n_lines - 2, 529: 1}


def test_only_planted_folders_have_a_log(tmp_path):
    assert write_landing(tmp_path, size=SMALL, seed=1).logs == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ada", "grace", "linus"]
