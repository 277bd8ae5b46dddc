"""`kv-pipeline export` on the example, in every format, from the store and from trace files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kv_pipeline.export.options import FILE_NAMES, Format
from kv_pipeline.store import Store
from kv_pipeline_tests.export import truth

PAGE = Path("docs/export-formats.md").resolve()
ONE_FILE = list(FILE_NAMES)


@pytest.fixture(scope="module")
def requests(example_store):
    return truth.of_store(Store.open(example_store))


@pytest.fixture
def traces(command, example_store, tmp_path):
    """Trace JSON of the example, with times of day."""
    command("export", "--store", example_store, "--out", tmp_path / "traces", "--absolute-timestamps")
    return tmp_path / "traces"


@pytest.mark.parametrize("kind", ONE_FILE)
def test_every_format_holds_the_example(command, example_store, requests, tmp_path, kind):
    size = ["--block-size", 64] if kind is Format.BAILIAN else []
    done = command("export", "--store", example_store, "--format", kind, "--out", tmp_path, "--json", *size)
    assert (done.code, done.json["format"], done.json["n_traces"]) == (0, kind, 7)
    assert done.json["n_requests"] == sum(trace["n_requests"] for trace in done.json["traces"]) == len(requests)
    truth.ASSERTIONS[kind](Path(done.json["files"][0]), requests, 512 if kind is Format.MOONCAKE else 64)


@pytest.mark.parametrize("kind", ONE_FILE)
def test_every_format_holds_trace_files(command, traces, tmp_path, kind):
    done = command(
        "export", "--from-traces", traces, "--format", kind, "--out", tmp_path / "out", "--json", "--block-size", 128
    )
    assert (done.code, done.json["notices"]) == (0, [])
    requests = truth.of_traces(sorted(traces.glob("*.json")))
    truth.ASSERTIONS[kind](Path(done.json["files"][0]), requests, 128)
    assert done.json["n_requests"] == len(requests) > 40


def test_trace_json_from_trace_json_is_the_same(command, traces, tmp_path):
    done = command(
        "export", "--from-traces", traces, "--out", tmp_path / "again", "--absolute-timestamps", "--hash-ids", "global"
    )
    assert done.code == 0
    for path in traces.glob("*.json"):
        first, again = json.loads(path.read_text()), json.loads((tmp_path / "again" / path.name).read_text())
        del first["_analysis"]
        assert again == first


def test_files_that_can_not_be_used_are_named_and_the_rest_goes_on(command, traces, tmp_path):
    (traces / "bad.json").write_text("{")
    done = command("export", "--from-traces", traces, "--format", "mooncake", "--out", tmp_path / "m.jsonl", "--json")
    assert done.code == 1
    assert [(n["reason"], n["is_left_out"]) for n in done.json["notices"]] == [("no_trace", True)]
    assert done.json["n_traces"] == 7
    done = command("export", "--from-traces", traces, "--format", "mooncake", "--out", tmp_path / "m.jsonl")
    assert f"Left out: {traces / 'bad.json'}" in done.out
    assert "Not held by mooncake" in done.out


def test_smaller_blocks_can_not_be_made(command, traces, tmp_path):
    usual = command("export", "--from-traces", traces, "--format", "bailian", "--out", tmp_path / "b.jsonl", "--json")
    assert usual.code == 0
    assert {n["reason"] for n in usual.json["notices"]} == {"own_block_size"}
    asked = command(
        "export", "--from-traces", traces, "--format", "bailian", "--out", tmp_path / "b.jsonl", "--json",
        "--block-size", 16,
    )  # fmt: skip
    assert (asked.code, asked.json["n_traces"]) == (1, 0)
    assert {n["reason"] for n in asked.json["notices"]} == {"other_block_size"}


def test_input_is_not_written_over(command, traces):
    before = {path: path.read_bytes() for path in traces.iterdir()}
    done = command("export", "--from-traces", traces, "--out", traces)
    assert (done.code, "where the input is" in done.err) == (2, True)
    done = command("export", "--from-traces", traces, "--format", "mooncake", "--out", next(iter(before)))
    assert done.code == 2
    assert {path: path.read_bytes() for path in traces.iterdir()} == before


def test_one_trace_of_many(command, traces, tmp_path):
    name = sorted(traces.glob("*.json"))[1].stem
    arguments = ("export", "--from-traces", traces, "--out", tmp_path / "out", "--conversation-id")
    assert [t["trace_id"] for t in command(*arguments, name, "--json").json["traces"]] == [name]
    assert command(*arguments, "nobody").code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "mooncake", "--profile", "upstream"], "Leave out --profile"),
        (["--format", "parquet", "--no-sessions"], "--no-sessions"),
        (["--nested-times", "absolute"], "Use it with --from-traces"),
        (["--format", "oracle-general", "--absolute-timestamps"], "--format trace or parquet"),
        (["--from-traces", "nowhere"], "no file or folder"),
    ],
)
def test_usage(command, example_store, tmp_path, arguments, message):
    done = command("export", "--store", example_store, "--out", tmp_path / "out", *arguments)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("library", ["polars", "duckdb"])
def test_documented_examples_run(command, example_store, tmp_path, monkeypatch, capsys, library):
    pytest.importorskip(library, reason=f"an example of docs/export-formats.md: pip install {library}")
    command("export", "--store", example_store, "--format", "parquet", "--out", tmp_path / "requests.parquet")
    monkeypatch.chdir(tmp_path)
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if library in code]
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102  (the page is ours)
    assert len(capsys.readouterr().out.splitlines()) > 5
    found = names["found"]
    assert len(found.fetchall() if library == "duckdb" else found) == {"duckdb": 5, "polars": 7}[library]
