from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from kv_pipeline_tests.cli.commands import EXAMPLE
from kv_pipeline_tests.sources.factories import listing, make_database, make_log, make_pair, make_row

KEYS = {"store", "elapsed_s", "recomputed_partitions", "definition", "conversations", "requests_not_traced",
        "recovered_conversations", "users_without_conversations", "quarantined", "not_in_landing",
        "notices"}  # fmt: skip
HEAVY = ("dagster", "pandas", "sqlalchemy")
VERY_HEAVY = (*HEAVY, "polars", "pandera", "numpy", "pyarrow", "tiktoken", "gigatoken")


def imported_by(*arguments: object) -> tuple[int, set[str]]:
    """Exit code of a command in a process of its own, and the top-level modules it imported."""
    code = (
        "import atexit, json, sys; from kv_pipeline.cli import main\n"
        "tops = lambda: sorted({name.partition('.')[0] for name in sys.modules})\n"
        "atexit.register(lambda: sys.stderr.write('\\n' + json.dumps(tops())))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, set(json.loads(done.stderr.splitlines()[-1]))


LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO partition asset=(\w+) partition=\S+ duration_s=\d+\.\d{3}( \w+=\d+)+"
)


def assert_one_line_a_partition(run):
    found = [LINE.fullmatch(line) for line in run.err.splitlines()]
    assert all(found), run.err
    assert dict(Counter(match[1] for match in found)) == run.json["recomputed_partitions"]


def test_first_run_second_run_and_growth(tmp_path, command):
    inbox, store = tmp_path / "inbox", tmp_path / "store"
    shutil.copytree(EXAMPLE, inbox, ignore=shutil.ignore_patterns("grace"))
    before = listing(inbox)
    first = command("run", "--inbox", inbox, "--store", store, "--json")
    assert first.code == 0
    assert_one_line_a_partition(first)
    assert set(first.json) == KEYS
    assert first.json["notices"] == []
    assert first.json["recomputed_partitions"]["raw_requests"] == 4
    assert len(first.json["conversations"]) == first.json["recomputed_partitions"]["traces"] == 5
    assert listing(inbox) == before

    second = command("run", "--inbox", inbox, "--store", store)
    assert second.code == 0
    assert "Everything was up to date." in second.out

    shutil.copytree(EXAMPLE / "grace", inbox / "grace")
    third = command("run", "--inbox", inbox, "--store", store, "--json")
    assert third.json["recomputed_partitions"] == {
        "raw_requests": 1, "message_index": 1, "conversation_index": 1, "tokenized_blocks": 3, "traces": 3,
        "validation_report": 3,
    }  # fmt: skip


def test_databases_and_transcripts_given_by_path(tmp_path, command):
    grace = EXAMPLE / "grace"
    by_path = command("run", grace / "requests.db", grace / "projects", "--store", tmp_path / "store", "--json")
    assert by_path.code == 0
    assert [row["user_id"] for row in by_path.json["conversations"]] == ["local"] * 3
    by_file = command("run", grace / "requests.db", *sorted((grace / "projects").rglob("*.jsonl")),
                      "--store", tmp_path / "other", "--json")  # fmt: skip
    assert len(by_file.json["conversations"]) == 3


def test_a_run_that_is_up_to_date_imports_no_dagster_and_help_imports_nothing_heavy(example_store):
    code, modules = imported_by("run", "--inbox", EXAMPLE, "--store", example_store)
    assert code == 0
    assert modules.isdisjoint(HEAVY)
    for name in ("run", "list", "validate", "export", "demo", "report", "monitor"):
        code, modules = imported_by(name, "--help")
        assert code == 0
        assert modules.isdisjoint(VERY_HEAVY), name


def test_a_folder_of_one_user_is_an_inbox_too(tmp_path, command):
    shutil.copytree(EXAMPLE / "grace", tmp_path / "grace")
    done = command("run", "--inbox", tmp_path / "grace", "--store", tmp_path / "store", "--json")
    assert {row["user_id"] for row in done.json["conversations"]} == {"grace"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--inbox", "nowhere"], "nowhere is no folder"),
        (["run", "nowhere.db"], "nowhere.db does not exist"),
        (["run", "--block-size", "0"], "--block-size"),
        (["run", "--what"], "--what"),
        (["walk"], "walk"),
        (["list", "--store", "nowhere"], "There is no store at nowhere"),
        (["validate", "--store", "nowhere"], "kv-pipeline run --store nowhere"),
        (["export", "--store", "nowhere", "--out", "t"], "There is no store at nowhere"),
        (["export"], "--out"),
        (["demo", "--preset", "huge"], "huge"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_exit_with_2_name_the_remedy_and_make_nothing(tmp_path, command, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.code == 2
    assert expected in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_no_command_is_a_question_for_help(command):
    done = command()
    assert done.code == 2
    assert "Read what is new" in done.out + done.err


def test_an_inbox_with_nothing_in_it(tmp_path, command):
    (tmp_path / "inbox" / "nobody").mkdir(parents=True)
    done = command("run", "--inbox", tmp_path / "inbox", "--store", tmp_path / "store", "--json")
    assert (done.code, done.json["conversations"], done.json["notices"]) == (0, [], [])


def test_other_settings_for_the_same_store_are_refused(command, example_store):
    done = command("run", "--inbox", EXAMPLE, "--store", example_store, "--block-size", "128")
    assert done.code == 1
    assert "block_size is 64, not 128" in done.err
    assert "another --store" in done.err


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda store: (store / "store.json").write_text("{"), "store.json is damaged"),
        (lambda store: (store / "salt").unlink(), "lost its salt"),
        (lambda store: (store / "salt").write_bytes(b"other"), "salt"),
    ],
    ids=["store.json", "no salt", "another salt"],
)
def test_a_damaged_store_is_named(tmp_path, command, monkeypatch, damage, expected):
    monkeypatch.delenv("KV_PIPELINE_SALT", raising=False)
    (tmp_path / "inbox" / "ada").mkdir(parents=True)
    make_database(tmp_path / "inbox" / "ada", [make_row()])
    arguments = ["run", "--inbox", tmp_path / "inbox", "--store", tmp_path / "store"]
    assert command(*arguments).code == 0
    damage(tmp_path / "store")
    done = command(*arguments)
    assert done.code == 1
    assert expected in done.err
    assert "Traceback" not in done.err


def test_two_runs_at_once_wait_for_each_other(tmp_path):
    code = "from kv_pipeline.cli import main; main()"
    line = [sys.executable, "-c", code, "run", "--inbox", str(EXAMPLE), "--store", str(tmp_path / "store"), "--json"]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
            for _ in range(2)]  # fmt: skip
    outs = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    found = [json.loads(out)["conversations"] for out, _ in outs]
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_a_log_given_by_path(tmp_path, command):
    """No transcripts, no database: one log, through Dagster, to lists, comparison and trace files."""
    store, out = tmp_path / "store", tmp_path / "traces"
    messages = [{"role": "user", "content": "about the harbour " * 60}]
    first = make_pair({"messages": messages, "tools": [{"name": "Read"}]}, message_id="m1")
    more = [*messages, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "And then?"}]
    second = make_pair({"messages": more, "tools": [{"name": "Read"}]}, "m2", request={"timestamp": 1_748_554_800})
    log = make_log(tmp_path / "log.jsonl", [first, make_pair(message_id="probe"), second, "half a li"])
    done = command("run", log, "--store", store, "--json")
    assert done.code == 1
    assert [(n["source"], n["row"], n["reason"]) for n in done.json["notices"]] == [
        ("local/log.jsonl", 4, "broken_line")
    ]
    assert [(c["conversation_id"], c["n_requests"]) for c in done.json["conversations"]] == [("local/log.jsonl", 2)]
    assert done.json["requests_not_traced"] == [{"user_id": "local", "reason": "side_request", "n_requests": 1}]
    listed = command("list", "--store", store, "--json").json
    assert [(c["session_id"], c["structure"], c["match_rate"]) for c in listed] == [("log.jsonl", "content", None)]
    assert command("list", "--store", store).code == 0
    assert {row["n_requests"] for row in command("validate", "--store", store, "--json").json["fleet"]} == {2}
    assert command("export", "--store", store, "--out", out).code == 0
    (trace,) = out.glob("*.json")
    assert [request["t"] for request in json.loads(trace.read_text())["requests"]] == [0, 95.75]


def test_transcripts_alone(tmp_path, command):
    store, projects = tmp_path / "store", EXAMPLE / "ada" / "projects"
    before = listing(projects)
    first = command("run", "--projects", projects, "--store", store, "--json")
    assert first.code == 0
    counts = [(c["n_requests"], c["n_rebuilt"], c["n_approximate"]) for c in first.json["conversations"]]
    assert counts == [(15, 13, 2), (7, 7, 0)]
    assert listing(projects) == before
    assert "approximate" in command("list", "--store", store).out
    by_conversation = command("validate", "--store", store, "--json").json["conversations"]
    assert {row["n_approximate"] for row in by_conversation} == {0, 2}
    again = command("run", "--projects", projects, "--store", store)
    assert "Everything was up to date." in again.out
