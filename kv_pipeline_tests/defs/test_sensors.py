import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from kv_pipeline.defs.build import build_defs
from kv_pipeline.defs.instance import open_instance
from kv_pipeline.defs.partitions import RANGE_END, RANGE_START
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.defs.sensors import MAX_LOST, landing_sensor
from kv_pipeline.store import Store
from kv_pipeline_tests.defs.conftest import EXAMPLE, Place, writer_at_work


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "inbox").mkdir()
    with open_instance(tmp_path / "store") as instance:
        yield Place(tmp_path / "inbox", Store.open(tmp_path / "store"), instance)


def tick(place: Place, cursor: str | None) -> dg.SensorResult:
    resources = {"pipeline": place.pipeline}
    with dg.build_sensor_context(instance=place.instance, cursor=cursor, resources=resources) as context:
        result = landing_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def reason(result: dg.SensorResult) -> str:
    assert isinstance(result.skip_reason, dg.SkipReason)
    return str(result.skip_reason.skip_message)


def requested(result: dg.SensorResult) -> dg.RunRequest:
    (request,) = result.run_requests or []
    return request


def test_a_landing_folder_is_worked_through(empty: Place) -> None:
    shutil.copytree(EXAMPLE / "grace", empty.inbox / "grace")
    cursor, jobs = None, []
    while (result := tick(empty, cursor)).run_requests:
        request, cursor = requested(result), result.cursor
        jobs.append(request.job_name)
        assert empty.run(str(request.job_name), tags=dict(request.tags)).success
    assert jobs == ["ingest_databases", "index_conversations", "make_conversations"]
    assert reason(result) == "Everything is up to date."
    assert empty.instance.get_dynamic_partitions("databases") == ["grace/requests"]
    assert len(empty.instance.get_materialized_partitions(dg.AssetKey("validation_report"))) == 3
    assert json.loads(str(result.cursor))["asked"] == {}


def test_up_to_date_after_the_command_line(place: Place) -> None:
    assert reason(tick(place, None)) == "Everything is up to date."


def test_damage_is_requested_again(place: Place) -> None:
    key = "grace/07cb66fa-6445-4d90-b83a-3c92c30216dd"
    place.store.remove("traces", key)
    request = requested(tick(place, None))
    assert request.job_name == "make_conversations"
    assert ranges(request) == [key, key]
    assert place.instance.get_dynamic_partitions("conversations")[-1] == key


def launched(place: Place, result: dg.SensorResult, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """The run that the daemon makes of a request, as far as it got."""
    request = requested(result)
    job = build_defs(resource_overrides={"pipeline": place.pipeline}).resolve_job_def(str(request.job_name))
    return place.instance.create_run_for_job(job, tags=dict(request.tags), status=status)


def failed_step(place: Place, result: dg.SensorResult) -> None:
    """A run that was requested, and fails: its recordings are gone when it looks."""
    away = place.inbox.rename(place.inbox.with_name("away"))
    request = requested(result)
    assert not place.run(str(request.job_name), tags=dict(request.tags)).success
    away.rename(place.inbox)


def ranges(request: dg.RunRequest) -> list[str]:
    return [request.tags[RANGE_START], request.tags[RANGE_END]]


def test_what_failed_is_requested_once(empty: Place) -> None:
    shutil.copytree(EXAMPLE / "grace", empty.inbox / "grace")
    first = tick(empty, None)
    assert ranges(requested(first)) == ["grace/requests", "grace/requests"]
    failed_step(empty, first)
    second = tick(empty, first.cursor)  # the index of what is there goes on
    assert requested(second).job_name == "index_conversations"
    failed_step(empty, second)
    third = tick(empty, second.cursor)
    assert reason(third) == "Requested already: ingest_databases, index_conversations."
    shutil.copy(EXAMPLE / "linus/requests.db", empty.inbox / "grace/more.db")
    assert ranges(requested(tick(empty, third.cursor))) == ["grace/more", "grace/requests"]


def test_what_was_killed_is_requested_again_but_not_for_ever(empty: Place) -> None:
    shutil.copytree(EXAMPLE / "grace", empty.inbox / "grace")
    result = tick(empty, None)
    left = empty.store.root / "traces" / "grace" / ".tmp-999999999-x.parquet"
    left.parent.mkdir(parents=True)
    for _ in range(MAX_LOST + 1):
        left.touch()
        assert requested(result).job_name == "ingest_databases"
        run = launched(empty, result, dg.DagsterRunStatus.STARTED)
        assert reason(tick(empty, result.cursor)) == "A run that was requested has not ended."
        empty.instance.report_run_failed(run, "gone")
        result = tick(empty, result.cursor)
        assert not left.exists()
    assert requested(result).job_name == "index_conversations"


def test_what_never_became_a_run_is_requested_again(empty: Place) -> None:
    shutil.copytree(EXAMPLE / "grace", empty.inbox / "grace")
    first = tick(empty, None)
    assert requested(tick(empty, first.cursor)) == requested(first)


def test_what_was_canceled_stays_so(empty: Place) -> None:
    shutil.copytree(EXAMPLE / "grace", empty.inbox / "grace")
    first = tick(empty, None)
    launched(empty, first, dg.DagsterRunStatus.CANCELED)
    assert requested(tick(empty, first.cursor)).job_name == "index_conversations"


def test_waits_while_a_run_is_working(place: Place) -> None:
    with writer_at_work(place.store):
        result = tick(place, '{"ingest_databases": "x"}')
    assert reason(result) == "A run is working on the store."
    assert result.cursor is None  # what was asked for is kept


def test_no_landing_folder(empty: Place) -> None:
    empty.inbox.rmdir()
    assert reason(tick(empty, None)) == "There is no landing folder."


def test_only_settled_files_are_requested(empty: Place) -> None:
    shutil.copytree(EXAMPLE / "grace", empty.inbox / "grace")
    patient = PipelineResource(inbox=str(empty.inbox), store=str(empty.store.root), settle_s=3600)

    def look(cursor: str | None) -> dg.SensorResult:
        resources = {"pipeline": patient}
        with dg.build_sensor_context(instance=empty.instance, cursor=cursor, resources=resources) as context:
            result = landing_sensor(context)
        assert isinstance(result, dg.SensorResult)
        return result

    first = look(None)
    assert reason(first) == "Still changing, or too new: 2 recordings or users' transcripts."
    assert not first.run_requests
    remembered = json.loads(str(first.cursor))
    long_ago = {key: [fingerprint, 0.0] for key, (fingerprint, _) in remembered["seen"].items()}
    ready = {key: value for key, value in long_ago.items() if not key.startswith("transcripts")}
    second = look(json.dumps(remembered | {"seen": ready}))
    assert requested(second).job_name == "ingest_databases"
    launched(empty, second, dg.DagsterRunStatus.CANCELED)
    third = look(second.cursor)
    assert "Requested already: ingest_databases. Still changing" in reason(third)
    fourth = look(json.dumps(remembered | {"seen": long_ago, "asked": json.loads(str(third.cursor))["asked"]}))
    index = requested(fourth)
    assert index.job_name == "index_conversations"
    assert index.run_config == {"ops": {"conversation_index": {"config": {"users": ["grace"]}}}}


def test_recordings_that_left_are_told_once(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.inbox, tmp_path / "inbox", ignore=shutil.ignore_patterns("grace"))
    place = Place(tmp_path / "inbox", place.store, place.instance)
    first = tick(place, None)
    assert json.loads(str(first.cursor))["gone"] == ["grace/requests"]


@pytest.mark.parametrize("cursor", ['{"ingest_databases": "of an earlier version"}', "{", "null"])
def test_cursors_of_earlier_versions_know_nothing(place: Place, cursor: str) -> None:
    assert reason(tick(place, cursor)) == "Everything is up to date."
