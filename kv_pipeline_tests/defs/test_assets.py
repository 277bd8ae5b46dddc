import contextlib
import re
import shutil
import sqlite3
from collections import Counter
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from kv_pipeline.defs import resources
from kv_pipeline.defs.instance import open_instance
from kv_pipeline.defs.metadata import notice_counts
from kv_pipeline.defs.partitions import CONVERSATIONS, DATABASES, RANGE_END, RANGE_START, claim_range
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.steps import plan
from kv_pipeline.steps.index import conversations
from kv_pipeline.store import Store
from kv_pipeline_tests.defs.conftest import Place, writer_at_work

LOG = "hedy/%2Eclaude-trace/log-2026-03-02-16-00-00.jsonl"
PICTURES = re.compile(r"(!\[[a-zA-Z ,]+\]\(data:image/png;base64,[A-Za-z0-9+/=]+\)(\n\n)?)+")
BY_DATABASE = ("raw_requests", "message_index")


def materialization(result: dg.ExecuteInProcessResult, asset: str) -> dg.AssetMaterialization:
    (event,) = result.asset_materializations_for_node(asset)
    assert isinstance(event, dg.AssetMaterialization)
    return event


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    return str(failure.step_failure_data.error)


def test_command_line_run_is_in_the_instance(place: Place) -> None:
    known = set(conversations(place.store)["conversation_id"])
    for asset in BY_DATABASE:
        found = place.instance.get_materialized_partitions(dg.AssetKey(asset))
        assert found == {"ada/requests", "ada/requests-1", "grace/requests", "linus/requests", LOG}
    for asset in plan.CONVERSATION_TABLES:
        assert place.instance.get_materialized_partitions(dg.AssetKey(asset)) == known
    assert place.instance.get_latest_materialization_event(dg.AssetKey("conversation_index")) is not None
    assert {run.status for run in place.instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}


@pytest.mark.parametrize("asset", [*BY_DATABASE, *plan.CONVERSATION_TABLES])
def test_one_partition_again_changes_nothing(place: Place, asset: str) -> None:
    before = place.files()
    definition = DATABASES if asset in BY_DATABASE else CONVERSATIONS
    key = place.instance.get_dynamic_partitions(str(definition.name))[1]
    result = place.materialize(asset, key)
    assert result.success
    event = materialization(result, asset)
    assert event.partition == key
    rows = {name: pl.read_parquet(path).height for name in [asset] for path in [place.store.path(name, key)]}
    assert event.metadata["dagster/partition_row_count"].value == rows[asset]
    total = sum(pl.read_parquet(place.store.path(asset, k)).height for k in place.store.partitions(asset))
    assert event.metadata["dagster/row_count"].value == total > rows[asset]
    assert all(checks(result).values())
    assert place.files() == before


def test_all_conversations_again_changes_nothing(place: Place) -> None:
    before = place.files()
    keys = place.instance.get_dynamic_partitions("conversations")
    result = place.run("make_conversations", tags={RANGE_START: keys[0], RANGE_END: keys[-1]})
    assert result.success
    events = result.asset_materializations_for_node("traces")
    assert sorted(str(event.partition) for event in events) == sorted(keys)
    assert {event.metadata["partitions_of_run"].value for event in events} == {len(keys)}
    assert all("dagster/partition_row_count" not in event.metadata for event in events)
    assert place.files() == before


def test_index_reads_users_with_changes_or_all(place: Place) -> None:
    before = place.files()
    assert materialization(place.run("index_conversations"), "conversation_index").metadata["users_indexed"].value == 0
    everything = {"ops": {"conversation_index": {"config": {"all_users": True}}}}
    event = materialization(place.run("index_conversations", everything), "conversation_index")
    assert event.metadata["users_indexed"].value == 4
    assert event.metadata["conversations_to_make"].value == 0
    assert place.files() == before


def test_metadata_holds_neither_paths_nor_content(place: Place) -> None:
    records = [
        record.event_log_entry
        for key in [*BY_DATABASE, "conversation_index", *plan.CONVERSATION_TABLES]
        for record in place.instance.fetch_materializations(dg.AssetKey(key), limit=99).records
    ]
    assert records
    for record in records:
        assert record.asset_materialization is not None
        for name, value in record.asset_materialization.metadata.items():
            if name == "figures":
                assert PICTURES.fullmatch(str(value.value))
            else:
                assert isinstance(value, dg.IntMetadataValue | dg.TableSchemaMetadataValue), name


def test_unknown_partitions_are_refused(place: Place) -> None:
    place.instance.add_dynamic_partitions("databases", ["ada/nowhere"])
    place.instance.add_dynamic_partitions("conversations", ["ada/nowhere"])
    for asset, said in (("raw_requests", "missing_database"), ("traces", "has no requests of 1")):
        result = place.materialize(asset, "ada/nowhere")
        assert not result.success
        assert said in failure_of(result)
        assert not place.store.path(asset, "ada/nowhere").exists()


def test_schema_check_fails_for_a_tampered_file(place: Place) -> None:
    path = place.store.path("conversations", "ada")
    pl.read_parquet(path).with_columns(match_rate=pl.lit(-1.0)).write_parquet(path)
    result = place.run("index_conversations")
    assert checks(result)["matches_schema"] is False
    (found,) = [c for c in result.get_asset_check_evaluations() if not c.passed and c.blocking]
    assert "match_rate" in str(found.metadata["problem"].value)


def test_range_that_was_turned_round_is_refused(place: Place) -> None:
    keys = place.instance.get_dynamic_partitions("conversations")
    claim_range(place.instance, CONVERSATIONS, keys[:1])
    result = place.run("make_conversations", tags={RANGE_START: keys[0], RANGE_END: keys[2]})
    assert not result.success
    assert "Launch it again" in failure_of(result)


def test_claimed_range_is_exactly_the_keys(place: Place) -> None:
    keys = place.instance.get_dynamic_partitions("conversations")
    wanted = [keys[4], "zoe/new", keys[0]]
    tags = claim_range(place.instance, CONVERSATIONS, wanted)
    order = place.instance.get_dynamic_partitions("conversations")
    assert order[order.index(tags[RANGE_START]) : order.index(tags[RANGE_END]) + 1] == wanted


def test_run_waits_for_the_writer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer_at_work(place.store) as let_go:
        say_waiting = resources._say_waiting

        def say_and_let_go(context: dg.InitResourceContext) -> None:
            say_waiting(context)
            let_go()

        monkeypatch.setattr(resources, "_say_waiting", say_and_let_go)
        result = place.run("index_conversations")
    assert result.success
    said = [entry.user_message for entry in place.instance.all_logs(result.run_id)]
    assert any("waiting for it to end" in message for message in said)


def test_conversations_without_requests_go_and_the_fleet_is_rolled_up(place: Place) -> None:
    path = place.store.path("conversations", "linus")
    pl.read_parquet(path).with_columns(n_requests=pl.lit(0, dtype=pl.UInt32)).write_parquet(path)
    gone = plan.obsolete_conversations(place.store)
    assert len(gone) == 2
    assert place.run("index_conversations").success
    assert not set(gone) & set(place.instance.get_dynamic_partitions("conversations"))
    assert not plan.obsolete_conversations(place.store)
    assert not plan.is_roll_up_stale(place.store)


def test_notices_are_counted_by_reason() -> None:
    assert notice_counts(Counter()) == {"notices": 0}
    assert notice_counts(Counter(b=1, a=2)) == {"notices": 3, "notices_by_reason": {"a": 2, "b": 1}}


@pytest.mark.parametrize("with_index", [False, True], ids=["requests", "requests-and-index"])
def test_requests_alone_again_leave_their_index_to_do(example_store: Path, tmp_path: Path, with_index: bool) -> None:
    """A database grew, and somebody materialized raw_requests of it alone: the next run makes up for the rest."""
    inbox, database = tmp_path / "inbox", tmp_path / "inbox/grace/requests.db"
    shutil.copytree(example_store / "inbox/grace", inbox / "grace")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM requests WHERE rowid > 6")
        connection.commit()
    store = Store.open(tmp_path / "store")
    bring_up_to_date(store, Inputs(inbox))
    shutil.copy(example_store / "inbox/grace/requests.db", database)
    with open_instance(store.root) as instance:
        place = Place(inbox, store, instance)
        assert place.materialize("raw_requests", "grace/requests").success
        if with_index:
            assert place.run("index_conversations").success
    bring_up_to_date(store, Inputs(inbox))
    assert conversations(store)["n_requests"].sum() == 10
    assert not plan.stale_databases(store, Inputs(inbox).landing())


def test_the_roll_up_shows_figures_without_content(place: Place) -> None:
    key = place.instance.get_dynamic_partitions(str(CONVERSATIONS.name))[0]
    shown = materialization(place.materialize("validation_report", key), "validation_report").metadata["figures"]
    assert isinstance(shown, dg.MarkdownMetadataValue)
    assert str(shown.value).startswith("![Hit rate by model](data:image/png;base64,")
    assert len(str(shown.value)) < 200_000


def test_figures_are_in_one_event_a_run(place: Place) -> None:
    found = place.instance.fetch_materializations(dg.AssetKey("validation_report"), limit=99).records
    events = [record.event_log_entry.asset_materialization for record in found]
    assert len(events) > 1
    assert [event is not None and "figures" in event.metadata for event in events].count(True) == 1
