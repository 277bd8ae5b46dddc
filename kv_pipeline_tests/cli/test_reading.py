"""list, validate, export and demo: what reads a store, or needs none."""

from __future__ import annotations

import json

import pytest

from kv_pipeline_tests.sources.factories import listing


def test_list(command, example_store):
    done = command("list", "--store", example_store, "--json")
    assert done.code == 0
    assert len(done.json) == 8
    assert set(done.json[0]) >= {
        "conversation_id", "user_id", "n_requests", "n_agents", "first_request_at_utc", "last_request_at_utc",
        "models", "match_rate", "subagent_types",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sort", "key", "descends"),
    [("name", "conversation_id", False), ("requests", "n_requests", True), ("first", "first_request_at_utc", False),
     ("last", "last_request_at_utc", True)],
)  # fmt: skip
def test_list_is_sorted_and_limited(command, example_store, sort, key, descends):
    rows = command("list", "--store", example_store, "--sort", sort, "--limit", "3", "--json").json
    everything = command("list", "--store", example_store, "--json").json
    values = [row[key] for row in everything]
    assert [row[key] for row in rows] == sorted(values, reverse=descends)[:3]


def test_list_and_validate_for_people(command, example_store):
    for name in ("list", "validate"):
        done = command(name, "--store", example_store)
        assert (done.code, done.err) == (0, "")
        assert "858af957" in done.out


def test_validate(command, example_store):
    done = command("validate", "--store", example_store, "--limit", "2", "--json")
    assert done.code == 0
    assert set(done.json) >= {"definition", "conversations", "models", "fleet"}
    assert len({row["conversation_id"] for row in done.json["conversations"]}) == 2
    assert {row["scope"] for row in done.json["fleet"]} == {"agent", "conversation", "user", "fleet"}
    assert all(0 <= row["simulated_hit_rate"] <= 1 for row in done.json["fleet"])
    assert len(done.json["api"]["conversations"]) == 2
    assert set(done.json["api"]["fleet"][0]) >= {"predicted_hit_rate", "billed_hit_rate", "exact_share"}


@pytest.mark.parametrize("profile", ["upstream", "strict"])
def test_export(tmp_path, command, example_store, profile):
    done = command("export", "--store", example_store, "--out", tmp_path / "t", "--profile", profile, "--json")
    assert done.code == 0
    assert set(done.json) >= {"files", "n_requests", "left_out"}
    traces = [json.loads(path.read_text()) for path in (tmp_path / "t").glob("*.json")]
    assert sum("block_size" in trace and bool(trace["requests"]) for trace in traces) == 8


def test_reading_a_store_changes_nothing_in_it(tmp_path, command, example_store):
    before = listing(example_store)
    for arguments in (
        ["list"],
        ["validate"],
        ["export", "--out", tmp_path / "t"],
        ["monitor"],
        ["report", "--out", tmp_path / "r", "--text"],
    ):
        assert command(*arguments, "--store", example_store).code == 0
    after = listing(example_store)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--conversation-id", "nobody/nothing"], 2, "nobody/nothing"),
        (["--block-size", "0"], 2, "block"),
        (["--profile", "loose"], 2, "loose"),
    ],
)
def test_export_of_what_is_not_there(tmp_path, command, example_store, arguments, code, expected):
    done = command("export", "--store", example_store, "--out", tmp_path / "t", *arguments)
    assert done.code == code
    assert expected in done.err


def test_demo_makes_a_landing_folder_once(tmp_path, command):
    first = command("demo", "--out", tmp_path / "landing")
    assert first.code == 0
    assert (tmp_path / "landing" / "ada" / "requests.db").exists()
    second = command("demo", "--out", tmp_path / "landing")
    assert second.code == 2
    assert "already has users" in second.err


def test_demo_makes_a_fleet_of_any_size_the_same_for_the_same_seed(tmp_path, command):
    options = ["--users", "2", "--conversations", "3", "--turns", "2", "--seed", "7"]
    for name in ("first", "second"):
        assert command("demo", "--out", tmp_path / name, *options).code == 0
    first, second = ({p.relative_to(r): p.stat().st_size for p in r.rglob("*") if p.is_file()}
                     for r in (tmp_path / "first", tmp_path / "second"))  # fmt: skip
    assert first == second
    assert len([path for path in first if path.suffix == ".jsonl" and len(path.parts) == 4]) >= 6
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["ada", "grace", "hedy"]
