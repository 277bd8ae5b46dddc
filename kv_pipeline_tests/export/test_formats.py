"""Every format holds what the store has: requests, times, agents, and which blocks are the same."""

from __future__ import annotations

import hashlib
import json

import polars as pl
import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import FILE_NAMES, ExportOptions, Format, HashIdScope, Profile
from kv_pipeline_tests.export import truth
from kv_pipeline_tests.factories import bring_up_to_date, open_store

ONE_FILE = [Format(name) for name in truth.ASSERTIONS]


def export(store, out, kind, **options):
    return export_traces(store, out, ExportOptions(format=kind, **options))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("block_size", [16, 32, 80, 512])
@pytest.mark.parametrize("kind", ONE_FILE)
def test_round_trip(store, tmp_path, kind, block_size):
    result = export(store, tmp_path / "out.bin", kind, block_size=block_size)
    assert result.files == [tmp_path / "out.bin"]
    requests = truth.of_store(store)
    truth.ASSERTIONS[kind](result.files[0], requests, block_size)
    assert (result.n_requests, len(result.traces)) == (len(requests), 3)


@pytest.mark.parametrize("kind", ONE_FILE)
def test_folders_get_the_formats_file(store, tmp_path, kind):
    (tmp_path / "with.dot").mkdir()
    for out in (tmp_path / "new", tmp_path / "with.dot"):
        assert export(store, out, kind).files == [out / FILE_NAMES[kind]]
        assert [path.name for path in out.iterdir()] == [FILE_NAMES[kind]]


@pytest.mark.parametrize("kind", ONE_FILE)
def test_exports_are_the_same_each_time(store, tmp_path, kind):
    first, second = (export(store, tmp_path / name, kind).files[0].read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize(("kind", "block_size"), [(Format.MOONCAKE, 512), (Format.BAILIAN, 16), (Format.PARQUET, 16)])
def test_usual_block_sizes(store, tmp_path, kind, block_size):
    result = export(store, tmp_path, kind)
    truth.ASSERTIONS[kind](result.files[0], truth.of_store(store), block_size)


@pytest.mark.parametrize("kind", [Format.MOONCAKE, Format.PARQUET])
def test_sizes_that_are_no_multiple_are_tokenised_again(inbox, store, tmp_path, monkeypatch, kind):
    other = open_store(tmp_path / "other", monkeypatch, block_size=24)
    bring_up_to_date(other, inbox)
    result = export(store, tmp_path, kind, block_size=24)
    truth.ASSERTIONS[kind](result.files[0], truth.of_store(other), 24)


def test_equal_tails_are_equal_numbers(store, tmp_path):
    """Users ada and bob asked the same once; at 512 tokens that is one partial block."""
    rows = lines(export(store, tmp_path, Format.MOONCAKE).files[0])
    of = {row["session_id"]: row["hash_ids"] for row in reversed(rows)}
    assert of["ada_s1"] == of["bob_s3"]
    assert len(of["ada_s1"]) == 1


def test_older_tables_have_no_tails_and_say_so(store, tmp_path, monkeypatch):

    read = type(store).read

    def older(self, model, partitions):
        frame = read(self, model, partitions)
        return frame.with_columns(tail_hash=pl.lit(None, pl.UInt64)) if "tail_hash" in frame.columns else frame

    monkeypatch.setattr(type(store), "read", older)
    result = export(store, tmp_path, Format.MOONCAKE, block_size=16)
    numbers = [number for row in lines(result.files[0]) for number in row["hash_ids"][row["input_length"] // 16 :]]
    assert len(numbers) == len(set(numbers)) > 0
    (reason,) = [reason for reason in result.not_held if "number of their own" in reason]
    assert result.not_held[reason] == len(numbers)


def test_models_do_not_share_numbers_where_rows_do_not_name_them(store, tmp_path):
    rows = lines(export(store, tmp_path, Format.MOONCAKE, block_size=16).files[0])
    small = {number for row in rows if row["session_id"] == "ada_s1/first" for number in row["hash_ids"]}
    others = {number for row in rows if row["session_id"] != "ada_s1/first" for number in row["hash_ids"]}
    assert small
    assert not small & others
    agentic = lines(export(store, tmp_path, Format.AGENTIC_MOONCAKE).files[0])[1:]
    assert {row["model"] for row in agentic} == {"m", "small"}


def test_sub_agents_wait_for_who_started_them(store, tmp_path):
    rows = {row["request_id"]: row for row in lines(export(store, tmp_path, Format.AGENTIC_MOONCAKE).files[0])[1:]}
    first = next(row for row in rows.values() if row["session_id"] == "ada_s1/first")
    below = next(row for row in rows.values() if row["session_id"] == "ada_s1/below")
    (spawn,) = first["dependencies"]
    assert (spawn["relation"], rows[spawn["request_id"]]["session_id"]) == ("spawn", "ada_s1")
    (spawn,) = below["dependencies"]
    assert (spawn["relation"], rows[spawn["request_id"]]["session_id"]) == ("spawn", "ada_s1/first")
    assert (spawn["trigger"], spawn["delay_ms"]) == ("completion", 1000.0)


def test_the_header_has_the_digest_of_the_rows(store, tmp_path):
    content = export(store, tmp_path, Format.AGENTIC_MOONCAKE).files[0].read_bytes()
    header, _, rows = content.partition(b"\n")
    assert json.loads(header)["source"] == {"format": "kv_pipeline", "digest": hashlib.sha256(rows).hexdigest()}


@pytest.mark.parametrize("kind", ONE_FILE)
def test_the_options_of_trace_json_apply(store, tmp_path, kind):
    assert export(store, tmp_path, kind, min_requests=4).left_out == {"fewer requests than --min-requests": 2}
    assert export(store, tmp_path, kind, with_subagents=False).n_requests == 7
    split = export(store, tmp_path, kind, split_at_gap_s=600.0)
    assert [(trace.trace_id, trace.n_requests) for trace in split.traces if trace.conversation_id == "ada/s2"] == [
        ("ada_s2_s1", 2), ("ada_s2_s2", 1),
    ]  # fmt: skip
    assert split.n_requests == 11


@pytest.mark.parametrize("kind", ONE_FILE)
def test_nothing_of_a_name_is_left(store, tmp_path, kind):
    result = export(store, tmp_path, kind, anonymize=True)
    assert {trace.trace_id for trace in result.traces} == {"trace_0001", "trace_0002", "trace_0003"}
    content = result.files[0].read_bytes()
    for word in (b"ada", b"bob", b"early", b"below", b"toolu", b"2026", b"harbour", store.salt.hex().encode()):
        assert word not in content


def test_local_numbers_occur_in_one_conversation_only(store, tmp_path):
    result = export(store, tmp_path, Format.MOONCAKE, block_size=16, hash_ids=HashIdScope.LOCAL)
    owners = {}
    for row in lines(result.files[0]):
        for number in row["hash_ids"]:
            conversation = row["session_id"].partition("/")[0]
            assert owners.setdefault(number, conversation) == conversation


def test_without_sessions(store, tmp_path):
    rows = lines(export(store, tmp_path, Format.MOONCAKE, with_sessions=False).files[0])
    assert {key for row in rows for key in row} == {"timestamp", "input_length", "output_length", "hash_ids"}


def test_delays_are_think_times(store, tmp_path):
    rows = lines(export(store, tmp_path, Format.MOONCAKE).files[0])
    assert [row.get("delay") for row in rows if row["session_id"] == "ada_s1"] == [None, 59_000, 59_000]


def test_absolute_times_in_parquet(store, tmp_path):
    path = export(store, tmp_path, Format.PARQUET, absolute_timestamps=True).files[0]
    assert str(pl.read_parquet(path)["requested_at_utc"].min()) == "2026-03-02 07:59:30+00:00"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": Format.MOONCAKE, "profile": Profile.STRICT}, "Leave out --profile"),
        ({"format": Format.MOONCAKE, "absolute_timestamps": True}, "--format trace or parquet"),
        ({"format": Format.BAILIAN, "with_sessions": False}, "--no-sessions"),
        ({"format": Format.AGENTIC_MOONCAKE, "hash_ids": HashIdScope.GLOBAL}, "--hash-ids local"),
    ],
    ids=str,
)
def test_options_that_a_format_has_no_place_for(store, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        export_traces(store, tmp_path / "out", ExportOptions(**options))
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_there_stays_if_writing_fails(store, tmp_path, monkeypatch):
    path = tmp_path / "mooncake.jsonl"
    path.write_text("precious")

    def fail(self, request):
        raise RuntimeError

    monkeypatch.setattr("kv_pipeline.export.mooncake.MooncakeEncoder.__call__", fail)
    with pytest.raises(RuntimeError):
        export(store, tmp_path, Format.MOONCAKE)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("mooncake.jsonl", "precious")]


def test_a_place_that_cannot_be_written_is_said(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        export(store, tmp_path / "file" / "below.jsonl", Format.MOONCAKE)
