"""cache_report and what_if of landing folders: the committed example, and small ones with one thing in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import polars as pl
import pytest

from kv_pipeline.core.api_rules import with_collapsed_tool_runs
from kv_pipeline.core.causes import UNAVOIDABLE, Cause
from kv_pipeline.core.scenarios import Scenario
from kv_pipeline.reports.summary import api_table, cache_report
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS
from kv_pipeline.schemas.explanations import CACHE_REPORT, CONTENT_BLOCKS, WHAT_IF
from kv_pipeline.schemas.requests import SEGMENTS
from kv_pipeline.steps.explain import explain_user, stale_reports
from kv_pipeline.steps.prompts import describe_segments
from kv_pipeline.steps.simulation import ModelOptions
from kv_pipeline_tests.factories import (
    bring_up_to_date,
    growing_turns,
    open_store,
    recorded,
    user_message,
    write_database,
    write_transcript,
)

USERS = ("ada", "grace", "linus")
KEYS = ["conversation_id", "request_index"]
BILLED = ["billed_read_tokens", "billed_write_5m_tokens", "billed_write_1h_tokens", "billed_input_tokens"]


@pytest.fixture(scope="module")
def store(example):
    return example


@pytest.fixture(scope="module")
def report(store):
    return store.read(CACHE_REPORT, USERS)


def test_every_traced_request_has_its_row(store, report):
    traced = store.read(CONVERSATION_REQUESTS, USERS)
    assert report.select(KEYS).sort(KEYS).equals(traced.select(KEYS).sort(KEYS))


def test_read_new_and_lost_tokens_are_the_prompt(report):
    billed = report.drop_nulls("billed_read_tokens").with_columns(prompt=pl.sum_horizontal(BILLED))
    parts = billed.select(pl.col("billed_read_tokens") + pl.col("new_tokens") + pl.col("lost_tokens"))
    assert billed.height > 40
    assert parts.to_series().to_list() == billed["prompt"].to_list()


def test_only_avoidable_causes_lose_tokens(report):
    unavoidable = pl.col("cause").is_in([cause.value for cause in UNAVOIDABLE])
    assert report.filter(unavoidable)["lost_tokens"].sum() == 0
    assert report.filter(~unavoidable)["lost_tokens"].min() > 0


def test_what_was_planted_is_found(report):
    found = dict(report["cause"].value_counts().iter_rows())
    assert found.keys() >= {Cause.COLD, Cause.NEW_CONTENT, Cause.LIFETIME_PASSED, Cause.COMPACTION,
                            Cause.LOOK_BACK_OVERFLOW}  # fmt: skip
    assert found.get(Cause.UNEXPLAINED, 0) == 0
    late = report.filter(pl.col("cause") == Cause.LIFETIME_PASSED)
    assert (late["gap_s"] > 300).all()
    assert set(late["lifetime"]) == {"5m"}


def test_predictions_are_close_to_what_the_examples_own_cache_billed(store):
    fleet = api_table(cache_report(store), []).row(0, named=True)
    assert abs(fleet["difference_points"]) < 1
    assert fleet["exact_share"] > 0.8
    assert api_table(cache_report(store), ["model"])["n_requests"].sum() == fleet["n_requests"]


def test_lengths_known_from_bills_are_predicted_to_the_token(report):
    known = report.filter("is_length_billed", "uses_caching", pl.col("predicted_read_tokens") > 0)
    assert known.height > 25
    assert known["predicted_read_tokens"].to_list() == known["billed_read_tokens"].to_list()


def test_scenarios_cover_every_request(store, report):
    scenarios = store.read(WHAT_IF, USERS)
    counts = dict(scenarios.group_by("scenario").len().iter_rows())
    assert counts == dict.fromkeys([scenario.value for scenario in Scenario], report.height)
    reads = dict(scenarios.group_by("scenario").agg(pl.col("predicted_read_tokens").sum()).iter_rows())
    assert reads[Scenario.LIFETIME_1H] > reads[Scenario.AS_SENT]
    assert reads[Scenario.WARM_PREFIX_75] > reads[Scenario.AS_SENT]


def test_content_blocks_are_those_of_the_segments(store):
    segments = store.read(SEGMENTS, store.partitions(SEGMENTS.name))
    blocks = store.read(CONTENT_BLOCKS, store.partitions(CONTENT_BLOCKS.name))
    key = ["database_id", "segment_index"]
    counted = blocks.group_by(key).agg(n=pl.len()).sort(key)
    expected = segments.filter(pl.col("n_content_blocks") > 0).select(*key, n="n_content_blocks").sort(key)
    assert counted.equals(expected)


def test_counted_tokens_are_close_to_those_of_whole_sections(store, report):
    """Blocks are counted one by one, so commas and brackets between them are missing."""
    whole = store.read(TOKENIZED_BLOCKS, store.partitions(TOKENIZED_BLOCKS.name))
    joined = report.join(whole, on=KEYS, suffix="_whole")
    for section in ("tools", "system", "messages"):
        counted, exact = joined[f"{section}_tokens"].sum(), joined[f"{section}_tokens_whole"].sum()
        assert abs(counted - exact) < 0.25 * exact


def test_a_second_time_changes_nothing(store):
    path = store.path(CACHE_REPORT.name, "ada")
    before = path.read_bytes()
    explain_user(store, "ada")
    assert path.read_bytes() == before
    assert stale_reports(store) == []


def test_only_users_with_something_new_are_explained_again(tmp_path, monkeypatch):
    inbox = tmp_path / "inbox"
    for user in ("ada", "linus"):
        write_database(inbox / user / "requests.db", growing_turns(user, 3))
        write_transcript(inbox / user, f"s-{user}", [(f"{user}-{n}", 60 * n + 1) for n in range(3)])
    made = open_store(tmp_path / "store", monkeypatch)
    bring_up_to_date(made, inbox)
    untouched = made.path(CACHE_REPORT.name, "linus").stat().st_mtime_ns
    write_database(inbox / "ada" / "requests.db", growing_turns("ada", 4)[3:])
    write_transcript(inbox / "ada", "s-ada", [(f"ada-{n}", 60 * n + 1) for n in range(4)])
    bring_up_to_date(made, inbox)
    assert made.read(CACHE_REPORT, ["ada"]).height == 4
    assert made.path(CACHE_REPORT.name, "linus").stat().st_mtime_ns == untouched


def test_described_segments_outlive_their_text(store):
    database = store.partitions(CONTENT_BLOCKS.name)[0]
    before = store.path(CONTENT_BLOCKS.name, database).read_bytes()
    segments = store.read(SEGMENTS, [database])
    store.write(SEGMENTS, database, segments.with_columns(text=pl.lit(None, pl.String)))
    try:
        describe_segments(store, database)
    finally:
        store.write(SEGMENTS, database, segments)
    assert store.path(CONTENT_BLOCKS.name, database).read_bytes() == before


def marked(words):
    message = user_message(words)
    message["content"][0]["cache_control"] = {"type": "ephemeral"}
    return message


LONG = "word " * 1200


def bill(read, written, fresh=3):
    usage = {"input_tokens": fresh, "cache_read_input_tokens": read, "cache_creation_input_tokens": written}
    return {"usage": usage}


def reported(tmp_path, monkeypatch, rows, messages):
    inbox = tmp_path / "inbox"
    write_database(inbox / "ada" / "requests.db", rows)
    write_transcript(inbox / "ada", "s", messages)
    made = open_store(tmp_path / "store", monkeypatch)
    bring_up_to_date(made, inbox)
    return made.read(CACHE_REPORT, ["ada"])


def test_a_replay_renews_what_its_twin_wrote(tmp_path, monkeypatch):
    """The second turn comes 9 minutes after the first, but 4 minutes after the first turn's replay."""
    ask, more = [marked(LONG)], [user_message(LONG), user_message("Yes"), marked("And now")]
    rows = [
        recorded("a", 0, messages=ask, stream=True, **bill(0, 1500)),
        recorded("b", 290, messages=ask, **bill(1500, 0)),
        recorded("c", 540, messages=more, **bill(1500, 20)),
    ]
    report = reported(tmp_path, monkeypatch, rows, [("b", 291), ("c", 541)])
    assert report["predicted_read_tokens"].to_list() == [0, 1500]
    assert report["billed_read_tokens"].to_list() == [0, 1500]


def test_requests_of_no_conversation_use_the_cache_too(tmp_path, monkeypatch):
    ask, more = [marked(LONG)], [user_message(LONG), user_message("Yes"), marked("And now")]
    side = [user_message(LONG), marked("Summarise")]
    rows = [
        recorded("a", 0, messages=ask, **bill(0, 1500)),
        recorded("side", 290, messages=side, **bill(1500, 9)),
        recorded("c", 540, messages=more, **bill(1500, 20)),
    ]
    report = reported(tmp_path, monkeypatch, rows, [("a", 1), ("c", 541)])
    assert report["predicted_read_tokens"].to_list() == [0, 1500]


def test_refused_requests_do_not(tmp_path, monkeypatch):
    ask, more = [marked(LONG)], [user_message(LONG), user_message("Yes"), marked("And now")]
    rows = [
        recorded("a", 0, messages=ask, **bill(0, 1500)),
        recorded("refused", 290, messages=ask, status=529),
        recorded("c", 540, messages=more, **bill(0, 1520)),
    ]
    report = reported(tmp_path, monkeypatch, rows, [("a", 1), ("c", 541)])
    assert report["predicted_read_tokens"].to_list() == [0, 0]
    assert report["cause"].to_list() == [Cause.COLD, Cause.LIFETIME_PASSED]


def test_bills_tell_how_short_a_cached_prefix_may_be(tmp_path, monkeypatch):
    ask, more = [marked("Short")], [user_message("Short"), user_message("Yes"), marked("And now")]
    rows = [recorded("a", 0, messages=ask, **bill(0, 40)), recorded("c", 10, messages=more, **bill(40, 20))]
    report = reported(tmp_path, monkeypatch, rows, [("a", 1), ("c", 11)])
    assert report["predicted_read_tokens"].to_list() == [0, 40]
    assert report["uses_caching"].all()


def test_without_usage_nothing_is_billed(tmp_path, monkeypatch):
    rows = [recorded("a", 0, messages=[marked(LONG)])]
    body, response = (
        rows[0][4],
        rows[0][5].replace('"usage": {"input_tokens": 10, "output_tokens": 5}', '"usage": null'),
    )
    report = reported(tmp_path, monkeypatch, [(*rows[0][:4], body, response)], [("a", 1)])
    assert report.select(BILLED).row(0) == (None, None, None, None)
    assert report["predicted_write_5m_tokens"].item() > 1200
    assert report["cause"].to_list() == [Cause.COLD]


def test_shared_prefixes_are_read_across_users(tmp_path, monkeypatch):
    inbox = tmp_path / "inbox"
    for n, user in enumerate(("ada", "linus")):
        system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
        row = recorded(user, 60 * n, system=system, messages=[user_message(f"Hello, I am {user}.")], **bill(0, 1500, 9))
        write_database(inbox / user / "requests.db", [row])
        write_transcript(inbox / user, f"s-{user}", [(user, 60 * n + 1)])
    made = open_store(tmp_path / "store", monkeypatch)
    bring_up_to_date(made, inbox)
    assert cache_report(made)["predicted_read_tokens"].to_list() == [0, 0]
    shared = cache_report(made, ModelOptions(shares_prefixes=True))
    assert shared["predicted_read_tokens"].to_list() == [0, 1500]


def test_newer_rules_look_further_back(store, report):
    rules = with_collapsed_tool_runs(datetime(2020, 1, 1, tzinfo=UTC))
    newer = cache_report(store, ModelOptions(rules=rules))
    overflowed = report.filter(pl.col("cause") == Cause.LOOK_BACK_OVERFLOW).select(KEYS)
    assert overflowed.height == 1
    before, after = (r.join(overflowed, on=KEYS)["predicted_read_tokens"].item() for r in (report, newer))
    assert after > before


def test_the_apis_own_diagnosis_stands_beside(tmp_path, monkeypatch):
    inbox = tmp_path / "inbox"
    write_database(inbox / "ada" / "requests.db", growing_turns("ada", 2))
    transcript = write_transcript(inbox / "ada", "s", [("ada-0", 1), ("ada-1", 61)])
    lines = transcript.read_text().splitlines()
    record = json.loads(lines[1])
    record["message"]["diagnostics"] = {"cache_miss_reason": {"type": "system_changed", "cache_missed_input_tokens": 5}}
    transcript.write_text("\n".join([lines[0], json.dumps(record), ""]))
    made = open_store(tmp_path / "store", monkeypatch)
    bring_up_to_date(made, inbox)
    report = made.read(CACHE_REPORT, ["ada"])
    assert report["recorded_miss_reason"].to_list() == [None, "system_changed"]
    assert report["recorded_missed_tokens"].to_list() == [None, 5]
