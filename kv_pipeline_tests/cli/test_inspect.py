from __future__ import annotations

import json

import pytest

from kv_pipeline.export.options import Format
from kv_pipeline.inspection.consumers import CONSUMERS
from kv_pipeline_tests.sources.factories import listing


@pytest.fixture(scope="module")
def exports(example_store, tmp_path_factory):
    """A folder with the example in every format, and trace JSON in both profiles."""
    from kv_pipeline.export.exporter import export_traces
    from kv_pipeline.export.options import ExportOptions, Format, Profile
    from kv_pipeline.store import Store

    out = tmp_path_factory.mktemp("exports")
    store = Store.open(example_store)
    for profile in Profile:
        export_traces(store, out / profile, ExportOptions(profile=profile))
    for kind in set(Format) - {Format.TRACE}:
        export_traces(store, out, ExportOptions(format=kind))
    return out


def test_everything_that_we_write_is_valid_for_all_its_readers(command, exports):
    document = command("inspect", exports, exports / "strict", "--json").json
    assert document["format"] == "kv_pipeline.inspection/1"
    assert {file["format"] for file in document["files"]} == {kind.value for kind in Format}
    for file in document["files"]:
        assert set(file["consumers"]) == {reader.value for reader in CONSUMERS[Format(file["format"])]}
        assert all(verdict["is_valid"] for verdict in file["consumers"].values()), file
    counts = {file["contents"]["n_requests"] for file in document["files"] if file["format"] in ("mooncake", "parquet")}
    assert len(counts) == 1


def test_upstream_traces_are_for_kv_cache_tester(command, exports):
    assert command("inspect", exports / "upstream", "--for", "kv-cache-tester").code == 0
    done = command("inspect", exports / "upstream", "--for", "aiperf")
    assert done.code == 1
    assert "$.hash_id_scope" in done.out
    assert "0 of 8 files are valid for aiperf." in done.out


def test_a_reader_of_other_formats(command, exports):
    done = command("inspect", exports / "mooncake.jsonl", "--for", "libcachesim")
    assert (done.code, "does not read this format" in done.out) == (1, True)


def test_problems_are_counted_and_limited(command, exports, tmp_path):
    path = next((exports / "strict").glob("*.json"))
    trace = json.loads(path.read_text())
    for request in trace["requests"]:
        request["extra"] = 1
    (tmp_path / "a.json").write_text(json.dumps(trace))
    verdict = command("inspect", tmp_path, "--json", "--limit", "1").json["files"][0]["consumers"]["aiperf"]
    assert verdict["n_problems"] == len(trace["requests"]) > len(verdict["problems"]) == 1
    assert verdict["problems"][0]["path"] == "$.requests[0]"


def test_what_nobody_reads(command, tmp_path):
    (tmp_path / "a.json").write_text("{")
    done = command("inspect", tmp_path)
    assert done.code == 1
    assert "nobody reads it: no JSON" in done.out
    assert "unknown format" in done.out


@pytest.mark.parametrize(("arguments", "message"), [(["nowhere"], "no file or folder"), (["."], "There is no *.json")])
def test_usage(command, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("inspect", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_folder_above_the_traces_says_where_they_are(command, tmp_path):
    (tmp_path / "unpacked" / "traces").mkdir(parents=True)
    (tmp_path / "unpacked" / "traces" / "a.json").write_text("{}")
    done = command("analyze", tmp_path / "unpacked")
    assert (done.code, "give that folder" in done.err.replace("\n", " ")) == (2, True)


def test_many_notices_of_one_reason_are_counted(command, tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.json").write_text("[]")
    done = command("analyze", tmp_path)
    assert (done.code, done.out.count("Left out: "), "2 more with reason" in done.out) == (1, 4, True)


def test_nothing_is_written(command, exports):
    before = listing(exports)
    command("inspect", exports)
    assert listing(exports) == before
