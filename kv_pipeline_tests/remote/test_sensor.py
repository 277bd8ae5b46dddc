"""Dagster, with landing folder and store in a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from kv_pipeline.defs.build import build_defs
from kv_pipeline.defs.instance import open_instance
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.defs.sensors import landing_sensor
from kv_pipeline.remote.lease import Lease, Times
from kv_pipeline.remote.objects import Objects
from kv_pipeline.store import Store
from kv_pipeline_tests.defs.conftest import QUIET
from kv_pipeline_tests.remote.conftest import EXAMPLE, Machines


@pytest.fixture
def pipeline(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> PipelineResource:
    """As the environment says."""
    monkeypatch.setenv("KV_PIPELINE_INBOX", machines.bucket.url("inbox"))
    monkeypatch.setenv("KV_PIPELINE_STORE", machines.bucket.url("kv"))
    monkeypatch.setenv("KV_PIPELINE_SETTLE_S", "0")
    return PipelineResource()


@pytest.fixture
def instance(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with open_instance(tmp_path) as opened:
        yield opened


def tick(pipeline: PipelineResource, instance: dg.DagsterInstance, cursor: str | None) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"pipeline": pipeline}) as context:
        result = landing_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def test_a_landing_folder_in_a_bucket_is_worked_through(machines, pipeline, instance):
    assert tick(pipeline, instance, None).skip_reason.skip_message == "There is no landing folder."
    machines.bucket.upload(EXAMPLE / "grace", "inbox/grace")
    cursor, jobs = None, []
    definitions = build_defs()
    while (result := tick(pipeline, instance, cursor)).run_requests:
        (request,), cursor = result.run_requests, result.cursor
        jobs.append(request.job_name)
        job = definitions.resolve_job_def(str(request.job_name))
        config = QUIET | dict(request.run_config)
        assert job.execute_in_process(instance=instance, tags=dict(request.tags), run_config=config).success
    assert jobs == ["ingest_databases", "index_conversations", "make_conversations"]
    assert result.skip_reason.skip_message == "Everything is up to date."
    machines.use("another")
    assert len(Store.open(machines.at("kv")).partitions("validation_report")) == 3


def test_while_another_machine_writes_the_sensor_waits(machines, pipeline, instance):
    machines.bucket.put("inbox/ada/a.db", b"x")
    pipeline.open_store()
    with Lease(Objects.open(machines.at("kv")), "another machine", Times.of_expiry(60)).held():
        result = tick(pipeline, instance, None)
    assert result.skip_reason.skip_message == "A run is working on the store."


def test_every_night_reports_are_published(machines, pipeline, instance):
    machines.bucket.upload(EXAMPLE / "grace", "inbox/grace")
    nightly = build_defs().resolve_job_def("nightly")
    assert nightly.execute_in_process(instance=instance, run_config=QUIET).success
    names = machines.bucket.names("kv")
    assert {"reports/index.html", "reports/monitor.json", "state/validation_summary.json"} <= {*names}
    assert [name for name in names if name.startswith("dagster")] == []
