from __future__ import annotations

import json
import re

import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import ExportOptions, HashIdScope, Profile
from kv_pipeline_tests.comparison import requests_by_agent
from kv_pipeline_tests.factories import (
    bring_up_to_date,
    open_store,
    recorded,
    write_database,
    write_transcript,
)

TRACE_KEYS = {"id", "models", "block_size", "hash_id_scope", "tool_tokens", "system_tokens", "requests", "totals"}
REQUEST_KEYS = {
    "t", "type", "model", "in", "out", "hash_ids", "input_types", "output_types", "stop", "api_time", "ttft",
    "think_time",
}  # fmt: skip
SUBAGENT_KEYS = {
    "t", "type", "agent_id", "subagent_type", "duration_ms", "total_tokens", "tool_use_count", "status", "models",
    "tool_tokens", "system_tokens", "requests",
}  # fmt: skip
TOTALS_KEYS = {"parent_tokens", "subagent_tokens", "combined_tokens", "subagent_count"}
TIME_OF_DAY = re.compile(r"\d\d:\d\d:\d\d|2026-")


@pytest.fixture
def exported(store, tmp_path):
    def export(conversation_ids=None, **options):
        result = export_traces(store, tmp_path, ExportOptions(**options), conversation_ids)
        return [json.loads(path.read_bytes()) for path in result.files]

    return export


def all_requests(trace):
    return [request for own in requests_by_agent(trace["requests"]).values() for request in own]


def subagents(entries):
    return [entry for entry in entries if entry["type"] == "subagent"]


# --- Both profiles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": Profile.STRICT},
        {"hash_ids": HashIdScope.LOCAL},
        {"block_size": 7},
        {"split_at_gap_s": 600.0},
        {"with_subagents": False},
        {"anonymize": True},
    ],
    ids=str,
)
def test_every_request_has_its_full_blocks(exported, options):
    for trace in exported(**options):
        assert trace["block_size"] == options.get("block_size", 16)
        for request in all_requests(trace):
            assert len(request["hash_ids"]) == request["in"] // trace["block_size"] > 0


def test_strict_traces_have_the_allowed_keys_and_no_other(exported):
    for trace in exported(profile=Profile.STRICT):
        assert trace.keys() == TRACE_KEYS
        assert trace["hash_id_scope"] == "local"
        assert trace["totals"].keys() == TOTALS_KEYS
        assert trace["requests"][0]["type"] != "subagent"
        for entry in trace["requests"]:
            assert entry.keys() <= (SUBAGENT_KEYS if entry["type"] == "subagent" else REQUEST_KEYS)
        for agent in subagents(trace["requests"]):
            assert agent.keys() == SUBAGENT_KEYS
            assert isinstance(agent["subagent_type"], str)
            assert agent["status"] in {"completed", "async_launched"}
            assert agent["requests"]
            assert all(request["type"] in ("s", "n") for request in agent["requests"])
            assert set(agent["models"]) <= set(trace["models"])
        for request in all_requests(trace):
            assert request["in"] > 0
            assert request["model"] in trace["models"]
            assert ("ttft" in request) == (request["type"] == "s")
            assert request.keys() <= REQUEST_KEYS


def test_strict_analysis_lies_beside_the_trace(exported, tmp_path):
    exported(profile=Profile.STRICT)
    assert {p.name for p in tmp_path.glob("*.json")} == {p.name for p in (tmp_path / "analysis").glob("*.json")}
    analysis = json.loads((tmp_path / "analysis" / "ada_s1.json").read_bytes())
    assert analysis["id"] == "ada_s1"
    assert analysis["billed"]["prompt_tokens"] == 70


def test_upstream_traces_carry_their_analysis(exported, tmp_path):
    traces = exported()
    assert all(trace.keys() == TRACE_KEYS | {"_analysis"} for trace in traces)
    assert not (tmp_path / "analysis").exists()
    agents = {agent["agent_id"]: agent for agent in traces[0]["_analysis"]["agents"]}
    assert agents["below"] == {
        "agent_id": "below", "parent_agent_id": "first", "link": "meta", "is_fork": False, "depth": 2,
    }  # fmt: skip
    assert agents["early"]["link"] == "none"


def test_upstream_sub_agents_nest_and_start_when_they_started(exported):
    trace = exported()[0]
    shape = [(e["t"], e.get("agent_id") or "request") for e in trace["requests"]]
    assert shape == [(0, "early"), (30, "request"), (90, "request"), (100, "first"), (150, "request")]
    first = trace["requests"][3]
    assert [(e["t"], e.get("agent_id")) for e in first["requests"]] == [(0, None), (2, "below"), (10, None)]
    assert trace["models"] == ["m"]
    assert (first["models"], first["subagent_type"], first["requests"][1]["subagent_type"]) == (
        ["small"], "Explore", "unlinked",
    )  # fmt: skip


def test_strict_sub_agents_are_siblings_after_the_first_request(exported):
    trace = exported(profile=Profile.STRICT)[0]
    shape = [(e["t"], e.get("agent_id") or "request") for e in trace["requests"]]
    assert shape == [
        (30, "request"), (30, "early"), (90, "request"), (100, "first"), (102, "below"), (150, "request"),
    ]  # fmt: skip
    assert trace["models"] == ["m", "small"]
    assert [[request["t"] for request in agent["requests"]] for agent in subagents(trace["requests"])] == [
        [0], [0, 10], [0],
    ]  # fmt: skip


@pytest.mark.parametrize("profile", list(Profile))
def test_totals(exported, profile):
    trace = exported(profile=profile)[0]
    own = requests_by_agent(trace["requests"])
    main, below = own.pop("main"), [request for requests in own.values() for request in requests]
    totals = trace["totals"]
    assert totals["parent_tokens"] == {"input": sum(r["in"] for r in main), "output": 15}
    assert totals["subagent_tokens"] == {"input": sum(r["in"] for r in below), "output": 20}
    assert totals["combined_tokens"]["input"] == sum(r["in"] for r in main + below)
    assert totals["subagent_count"] == 3


def test_facts_of_a_sub_agent_that_no_caller_reports(exported):
    first = exported()[0]["requests"][3]
    last = first["requests"][-1]
    assert (first["duration_ms"], first["tool_use_count"], first["status"]) == (11_000, 0, "completed")
    assert first["total_tokens"] == last["in"] + last["out"]


def test_streamed_requests_only_have_a_time_to_first_token(exported):
    for trace in exported():
        for request in all_requests(trace):
            assert request["api_time"] == 1.0
            assert request.get("ttft") == (0.5 if request["type"] == "s" else None)


# --- Block numbers ----------------------------------------------------------------------------------------------------


def in_trace_order(trace):
    """Requests of a trace by time."""

    def timed(entries, base):
        for entry in entries:
            if entry["type"] == "subagent":
                yield from timed(entry["requests"], base + entry["t"])
            else:
                yield base + entry["t"], entry

    return [request for _, request in sorted(timed(trace["requests"], 0), key=lambda item: item[0])]


def assert_dense(traces):
    seen = 0
    for trace in traces:
        for request in in_trace_order(trace):
            new = [number for number in request["hash_ids"] if number > seen]
            assert new == list(range(seen + 1, seen + 1 + len(new)))
            seen = max([seen, *new])
    return seen


def test_global_numbers_are_dense_over_all_files(exported):
    traces = exported()
    assert [trace["hash_id_scope"] for trace in traces] == ["global"] * 3
    assert assert_dense(traces) == 20
    assert traces[0]["requests"][1]["hash_ids"] == traces[2]["requests"][0]["hash_ids"], "bob asked the same"


def test_local_numbers_are_dense_in_every_file(exported):
    traces = exported(hash_ids=HashIdScope.LOCAL)
    assert [trace["hash_id_scope"] for trace in traces] == ["local"] * 3
    for trace in traces:
        assert assert_dense([trace]) >= 2


def test_equal_numbers_are_equal_prefixes(exported):
    by_number = {}
    for trace in exported():
        for request in all_requests(trace):
            for place, number in enumerate(request["hash_ids"]):
                assert (
                    by_number.setdefault(number, request["hash_ids"][: place + 1]) == request["hash_ids"][: place + 1]
                )


def test_another_block_size_is_that_of_a_store_made_with_it(inbox, exported, tmp_path, monkeypatch):
    found = exported(block_size=24)
    other = open_store(tmp_path / "other", monkeypatch, block_size=24)
    bring_up_to_date(other, inbox)
    result = export_traces(other, tmp_path / "out", ExportOptions())
    expected = [json.loads(path.read_bytes()) for path in result.files]
    for trace in found + expected:
        del trace["_analysis"]  # simulated hits are those of the store's own blocks
    assert found == expected


# --- Selecting and hiding ---------------------------------------------------------------------------------------------


def test_conversations_can_be_chosen_by_key_or_session(exported):
    assert [trace["id"] for trace in exported(["s3", "ada/s2"])] == ["ada_s2", "bob_s3"]


def test_an_unknown_conversation_is_refused(exported):
    with pytest.raises(UsageError, match="There is no conversation 's9'"):
        exported(["s1", "s9"])


def test_without_sub_agents(exported):
    trace = exported(with_subagents=False)[0]
    assert [entry["t"] for entry in trace["requests"]] == [0, 60, 120]
    assert (trace["totals"]["subagent_count"], trace["totals"]["subagent_tokens"]["input"]) == (0, 0)


def test_short_conversations_are_counted_when_left_out(store, tmp_path):
    result = export_traces(store, tmp_path, ExportOptions(min_requests=4))
    assert [path.name for path in result.files] == ["ada_s1.json"]
    assert (result.n_requests, result.left_out) == (7, {"fewer requests than --min-requests": 2})


def test_splitting_at_gaps(exported):
    traces = exported(["s2"], split_at_gap_s=600.0)
    assert [(trace["id"], [r["t"] for r in trace["requests"]]) for trace in traces] == [
        ("ada_s2_s1", [0, 60]), ("ada_s2_s2", [0]),
    ]  # fmt: skip
    assert [trace["id"] for trace in exported(["s2"], split_at_gap_s=4939.0)] == ["ada_s2"]
    assert len(exported(["s2"], split_at_gap_s=4938.9)) == 2


def test_gaps_are_measured_from_the_end_of_an_answer(exported):
    assert len(exported(["s2"], split_at_gap_s=59.0)) == 2, "the answer took 1 s of the first minute"
    assert len(exported(["s2"], split_at_gap_s=58.9)) == 3


def test_nothing_of_a_name_or_a_time_of_day_is_left(exported, tmp_path):
    traces = exported(anonymize=True)
    assert [trace["id"] for trace in traces] == ["trace_0001", "trace_0002", "trace_0003"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"trace_000{n}.json" for n in (1, 2, 3)]
    assert sorted(requests_by_agent(traces[0]["requests"])) == ["agent_001", "agent_002", "agent_003", "main"]
    for trace in traces:
        text = json.dumps(trace)
        assert not TIME_OF_DAY.search(text)
        for name in ("ada", "bob", "early", "below", "toolu", "s1"):
            assert f'"{name}' not in text
            assert f"/{name}" not in text


def test_no_content_and_no_hash_leaves_the_store(store, exported):
    text = json.dumps(exported())
    for word in ("harbour", "ships", "Be brief", "salt", store.salt.hex()):
        assert word not in text
    assert max(number for trace in exported() for r in all_requests(trace) for number in r["hash_ids"]) < 1000


def test_absolute_timestamps(exported):
    first, second = exported(["s2"], absolute_timestamps=True)[0]["requests"][:2]
    assert (first["timestamp"], second["timestamp"]) == ("2026-03-02T08:00:00Z", "2026-03-02T08:01:00Z")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": Profile.STRICT, "hash_ids": HashIdScope.GLOBAL}, "--hash-ids local"),
        ({"profile": Profile.STRICT, "absolute_timestamps": True}, "--profile upstream"),
        ({"anonymize": True, "absolute_timestamps": True}, "Choose one"),
        ({"block_size": 0}, "--block-size"),
        ({"split_at_gap_s": 0.0}, "--split-at-gap"),
        ({"split_at_gap_s": -1.0}, "--split-at-gap"),
    ],
)
def test_options_that_exclude_each_other(store, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        export_traces(store, tmp_path / "out", ExportOptions(**options))
    assert not (tmp_path / "out").exists()


def test_exports_are_the_same_each_time(store, tmp_path):
    for name in ("1", "2"):
        export_traces(store, tmp_path / name, ExportOptions())
    assert {p.name: p.read_bytes() for p in (tmp_path / "1").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "2").iterdir()
    }


# --- Names and structures that nobody should write --------------------------------------------------------------------


def odd_store(tmp_path, monkeypatch, write):
    inbox = tmp_path / "inbox"
    write(inbox)
    store = open_store(tmp_path / "store", monkeypatch)
    bring_up_to_date(store, inbox)
    return store


def test_conversations_whose_names_run_together_get_files_of_their_own(tmp_path, monkeypatch):
    def write(inbox):
        for user, session in (("a_b", "c"), ("a", "b_c")):
            write_database(inbox / user / "r.db", [recorded("m1")])
            write_transcript(inbox / user, session, [("m1", 0)])

    store = odd_store(tmp_path, monkeypatch, write)
    result = export_traces(store, tmp_path / "out", ExportOptions())
    assert len(set(result.files)) == 2
    assert len({json.loads(path.read_bytes())["id"] for path in result.files}) == 2


def test_a_long_request_bridges_a_gap_that_others_leave(tmp_path, monkeypatch):
    def write(inbox):
        rows = [recorded("m0", 0, response_ms=800_000), recorded("m1", 5), recorded("m2", 900)]
        write_database(inbox / "ada" / "r.db", rows)
        write_transcript(inbox / "ada", "s", [("m0", 0), ("m1", 5), ("m2", 900)])

    store = odd_store(tmp_path, monkeypatch, write)
    pieces = {gap: len(export_traces(store, tmp_path, ExportOptions(split_at_gap_s=gap)).files) for gap in (99, 101)}
    assert pieces == {99: 2, 101: 1}


def test_agents_that_name_each_other_as_parent_are_kept(tmp_path, monkeypatch):
    def write(inbox):
        rows = [recorded(f"m{n}", n) for n in range(3)]
        write_database(inbox / "ada" / "r.db", rows)
        write_transcript(inbox / "ada", "s", [("m0", 0)])
        write_transcript(inbox / "ada", "s", [("m1", 1)], agent="a", parentAgentId="b", toolUseId="t")
        write_transcript(inbox / "ada", "s", [("m2", 2)], agent="b", parentAgentId="a", toolUseId="u")

    store = odd_store(tmp_path, monkeypatch, write)
    for profile in Profile:
        result = export_traces(store, tmp_path / "out", ExportOptions(profile=profile))
        (trace,) = [json.loads(path.read_bytes()) for path in result.files]
        assert sorted(requests_by_agent(trace["requests"])) == ["a", "b", "main"]


def test_a_conversation_without_a_main_thread(tmp_path, monkeypatch):
    def write(inbox):
        write_database(inbox / "ada" / "r.db", [recorded("m0", 0), recorded("m1", 1)])
        write_transcript(inbox / "ada", "s", [("m0", 0)], agent="a", toolUseId="t")
        write_transcript(inbox / "ada", "s", [("m1", 1)], agent="b", toolUseId="u")

    store = odd_store(tmp_path, monkeypatch, write)
    result = export_traces(store, tmp_path / "out", ExportOptions(profile=Profile.STRICT))
    (trace,) = [json.loads(path.read_bytes()) for path in result.files]
    assert [entry.get("agent_id") for entry in trace["requests"]] == [None, "b"]
    result = export_traces(store, tmp_path / "out", ExportOptions(with_subagents=False))
    assert result.n_requests == 1
