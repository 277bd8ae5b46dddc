from __future__ import annotations

import json
from datetime import timedelta

import polars as pl
import pytest

from kv_pipeline.cli.retention import purge_command
from kv_pipeline.errors import StoreError, UsageError
from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import ExportOptions
from kv_pipeline.reports.summary import api_table, cache_report, validation_table
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS, SEGMENTS
from kv_pipeline.steps.conversations import tokenize_conversations
from kv_pipeline.steps.purge import purge_text, used_segments, without_content
from kv_pipeline_tests.upkeep.conftest import assert_same, moved

LINUS = "linus/148b6433-7d8e-4dfd-aca9-c355620b5e8b"


def texts(store, database_id):
    return store.read(SEGMENTS, [database_id]).select("segment_index", "text")


def test_a_purge_takes_all_text_and_leaves_everything_that_was_made_of_it(place, tmp_path):
    before, rates = place.tables("segments"), validation_table(place.store, ["conversation_id"])
    api = api_table(cache_report(place.store), [])
    export_traces(place.store, tmp_path / "before", ExportOptions())
    purged = purge_text(place.store)
    assert purged.databases == place.store.partitions(SEGMENTS.name)
    for database_id in purged.databases:
        segments = place.store.read(SEGMENTS, [database_id])
        assert segments["text"].null_count() == segments.height > 0
    assert (purged.n_segments, purged.n_bytes > 100_000) == (sum(n_rows(place)), True)
    assert_same(place.tables("segments"), before)
    outcome = place.run()
    assert (outcome.recomputed, outcome.skipped.height) == ({}, 0)
    assert validation_table(place.store, ["conversation_id"]).equals(rates)
    assert api_table(cache_report(place.store), []).equals(api)
    export_traces(place.store, tmp_path / "after", ExportOptions())
    for path in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / path.name).read_bytes() == path.read_bytes()
    export_traces(place.store, tmp_path / "multiple", ExportOptions(block_size=128))
    with pytest.raises(StoreError, match="no longer in the store"):
        export_traces(place.store, tmp_path / "other", ExportOptions(block_size=48))
    assert purge_text(place.store).databases == []


def n_rows(place):
    return [place.store.read(SEGMENTS, [key]).height for key in place.store.partitions(SEGMENTS.name)]


def test_by_age_only_what_no_later_request_contains_goes(place):
    raw = place.store.read(RAW_REQUESTS, ["linus/requests"])
    middle = raw["requested_at_utc"].sort()[raw.height // 2]
    later = used_segments(raw.filter(pl.col("requested_at_utc") >= middle))["segment_index"]
    before = texts(place.store, "linus/requests")
    purge_text(place.store, middle, "linus")
    after = texts(place.store, "linus/requests")
    kept = after.drop_nulls("text")
    assert set(kept["segment_index"]) == set(later)
    assert 0 < kept.height < before.height
    assert kept.equals(before.filter(pl.col("segment_index").is_in(later.implode())))
    purge_text(place.store, raw["requested_at_utc"].max() + timedelta(seconds=1), "linus")
    assert texts(place.store, "linus/requests")["text"].null_count() == before.height


def test_one_users_content(place):
    purged = purge_text(place.store, user_id="ada")
    assert {key.partition("/")[0] for key in purged.databases} == {"ada"}
    assert texts(place.store, "linus/requests")["text"].null_count() == 0
    for key in purged.databases:
        assert texts(place.store, key)["text"].null_count() == texts(place.store, key).height


def test_conversations_that_need_purged_content_keep_their_results_and_say_so(place):
    before = place.tables("segments")
    purge_text(place.store, user_id="linus")
    mine = place.store.read(CONVERSATION_REQUESTS, ["linus"])["conversation_id"].unique()
    assert without_content(place.store, [*mine, "ada/858af957-6779-4389-a2fd-2106e5bc546d"]) == set(mine)
    with pytest.raises(StoreError, match="no longer in the store"):
        tokenize_conversations(place.store, [LINUS])
    # As if a later version had other rules for tokenized_blocks:
    place.store.update_state("tokenized_blocks", dict.fromkeys(place.store.state("tokenized_blocks"), "of old"))
    outcome = place.run()
    assert outcome.recomputed["tokenized_blocks"] == len(place.store.partitions("traces")) - len(mine)
    kept = outcome.skipped.filter(reason="content_purged")
    assert set(kept["source"]) == set(mine)
    assert not kept["is_left_out"].any()
    assert_same(place.tables("segments"), before)


def test_content_comes_back_with_a_changed_recording_and_only_then(place, tmp_path):
    expected = place.tables()
    place = moved(place, tmp_path / "inbox")
    place.run()
    purge_text(place.store)
    assert place.run().recomputed == {}
    (place.inbox / "linus" / "requests.db").touch()
    assert place.run().recomputed["raw_requests"] == 1
    assert place.store.state("purged").keys() == {*place.store.partitions(SEGMENTS.name)} - {"linus/requests"}
    for name in ("segments/linus/requests.parquet", f"traces/{LINUS}.parquet"):
        assert place.tables()[name].equals(expected[name])


def test_the_command_says_what_would_come_back(place, capsys):
    purge_command(place.store.root, place.inbox, None, "ada", everything=True, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["in_landing"] == said["databases"] == sorted(said["databases"]) != []
    purge_command(place.store.root, place.inbox, 36_500, None, everything=False, as_json=False)
    assert capsys.readouterr().out.startswith("Purged 0 segments, 0 bytes, of 0 recordings.")


@pytest.mark.parametrize(
    ("days", "everything", "user", "message"),
    [(None, False, None, "Say how old"), (3, True, None, "Say how old"), (None, True, "bob", "knows no user 'bob'")],
)
def test_unclear_orders_are_refused(place, days, everything, user, message):
    with pytest.raises(UsageError, match=message):
        purge_command(place.store.root, place.inbox, days, user, everything=everything, as_json=True)
    assert texts(place.store, "linus/requests")["text"].null_count() == 0
