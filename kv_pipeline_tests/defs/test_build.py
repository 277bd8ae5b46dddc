import warnings

import dagster as dg
import pandera.polars as pa
import pytest

from kv_pipeline.defs.build import build_defs
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import CONVERSATIONS
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS

ASSETS: dict[str, tuple[str, list[str], str | None, pa.DataFrameSchema]] = {
    "raw_requests": ("databases", [], "databases", RAW_REQUESTS),
    "message_index": ("databases", ["raw_requests"], "databases", MESSAGE_INDEX),
    "conversation_index": ("conversations", ["message_index"], None, CONVERSATIONS),
    "tokenized_blocks": ("conversations", ["conversation_index"], "conversations", TOKENIZED_BLOCKS),
    "traces": ("results", ["tokenized_blocks"], "conversations", TRACES),
    "validation_report": ("results", ["traces"], "conversations", VALIDATION_REPORT),
}


def definitions() -> dg.Definitions:
    return build_defs()


def node(name: str) -> dg.AssetSpec:
    return {spec.key.to_user_string(): spec for spec in definitions().resolve_all_asset_specs()}[name]


def test_definitions_load_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dg.Definitions.validate_loadable(build_defs())


def test_six_assets_and_what_is_made_of_them_every_night() -> None:
    found = {spec.key.to_user_string() for spec in definitions().resolve_all_asset_specs()}
    assert found == {*ASSETS, "nightly_report"}


@pytest.mark.parametrize("name", ASSETS)
def test_asset_is_what_the_ui_should_show(name: str) -> None:
    group, dependencies, partitions, model = ASSETS[name]
    spec = node(name)
    assert spec.group_name == group
    assert [dep.asset_key.to_user_string() for dep in spec.deps] == dependencies
    assert spec.description
    found = spec.partitions_def
    assert (found.name if isinstance(found, dg.DynamicPartitionsDefinition) else None) == partitions
    schema = spec.metadata["dagster/column_schema"]
    assert [(column.name, column.description, column.constraints.nullable) for column in schema.columns] == [
        (key, column.description, column.nullable) for key, column in model.columns.items()
    ]
    assert all(column.description for column in schema.columns)
    assert [len(column.constraints.other) for column in schema.columns] == [
        len(column.checks) for column in model.columns.values()
    ]
    assert schema.constraints.other == [f"key: {name}" for name in model.unique]


def test_types_are_short_enough_to_leave_room_for_descriptions() -> None:
    types = {
        column.name: column.type for name in ASSETS for column in node(name).metadata["dagster/column_schema"].columns
    }
    assert (types["requested_at_utc"], types["breakpoints"]) == ("Datetime(us, UTC)", "List(Struct)")
    assert (types["output_types"], types["status_code"]) == ("List(String)", "Int32")
    assert max(map(len, types.values())) == len("Datetime(us, UTC)")


def test_constraints_read_as_words() -> None:
    columns = {column.name: column for column in node("traces").metadata["dagster/column_schema"].columns}
    assert columns["t_s"].constraints.other == ["at least 0"]
    assert columns["type"].constraints.other == ["one of s, n"]


def test_every_asset_has_one_blocking_check() -> None:
    graph = definitions().resolve_asset_graph()
    specs = [graph.get_check_spec(key) for key in graph.asset_check_keys]
    blocking = [spec for spec in specs if spec.blocking]
    assert {spec.asset_key.to_user_string() for spec in blocking} == set(ASSETS)
    assert {spec.name for spec in blocking} == {"matches_schema"}
    assert all(spec.description for spec in specs)


def test_a_range_is_one_run() -> None:
    graph = definitions().resolve_asset_graph()
    assert {graph.get(key).backfill_policy for key in graph.get_all_asset_keys()} == {dg.BackfillPolicy.single_run()}


def test_sensor_is_off_and_everything_is_described() -> None:
    repository = definitions().get_repository_def()
    for sensor in repository.sensor_defs:
        assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
        assert sensor.description
    assert all(schedule.description for schedule in repository.schedule_defs)
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    assert {job.name for job in jobs if job.description} == {
        "ingest_databases",
        "index_conversations",
        "make_conversations",
        "nightly",
    }
