import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from kv_pipeline.alerts.webhook import post
from kv_pipeline.defs.alerts import DSN_VARIABLE, WEBHOOK_VARIABLE, alert_sensor
from kv_pipeline.defs.build import build_defs
from kv_pipeline.defs.nightly import freshness, nightly_report
from kv_pipeline.defs.thresholds import Thresholds, graded
from kv_pipeline.errors import UsageError
from kv_pipeline.prices.loading import load_prices
from kv_pipeline.reports.cache_metrics import cache_metrics
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.schemas.requests import SEGMENTS
from kv_pipeline_tests.alerts.conftest import Received, server
from kv_pipeline_tests.defs.conftest import Place

__all__ = ["server"]
EVERYTHING = {"ops": {"nightly_report": {"config": {"retention_days": 1}}}}


def run_nightly(place: Place, thresholds: Thresholds | None = None, **config: Any) -> dg.ExecuteInProcessResult:
    definitions = build_defs(resource_overrides={"pipeline": place.pipeline, "thresholds": thresholds or Thresholds()})
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    return definitions.resolve_job_def("nightly").execute_in_process(
        instance=place.instance, run_config=quiet | config, raise_on_error=False
    )


def results(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def alert_tick(place: Place, cursor: str | None) -> dg.SensorResult:
    resources = {"pipeline": place.pipeline}
    with dg.build_sensor_context(instance=place.instance, cursor=cursor, resources=resources) as context:
        found = alert_sensor(context)
    assert isinstance(found, dg.SensorResult)
    return found


def test_a_night(place: Place, tmp_path: Path, server: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    """New input, retention, reports and figures; and what is wrong is told once."""
    shutil.copytree(place.inbox, tmp_path / "inbox")
    place = Place(tmp_path / "inbox", place.store, place.instance)
    (place.inbox / "grace" / "requests.db").touch()
    (place.inbox / "linus" / "broken.db").write_text("no database")
    monkeypatch.setenv(WEBHOOK_VARIABLE, server.url)
    monkeypatch.setenv(DSN_VARIABLE, server.dsn)
    cursor = alert_tick(place, None).cursor
    night = run_nightly(place, **EVERYTHING)
    assert night.success
    (made,) = night.asset_materializations_for_node("nightly_report")
    assert made.metadata["left_out"].value == 1
    assert made.metadata["purged_segments"].value == sum(
        place.store.read(SEGMENTS, [key]).height for key in place.store.partitions(SEGMENTS.name)
    )
    found = results(night)
    assert found["match_rate"].passed
    assert found["validation_gap"].passed
    assert (found["skipped_rows"].passed, found["skipped_rows"].severity.value) == (False, "WARN")
    assert (found["recordings_arrive"].passed, found["recordings_arrive"].severity.value) == (False, "ERROR")
    reports = place.store.root / "reports"
    monitor = json.loads((reports / "monitor.json").read_text())
    assert monitor["overview"]["n_events"] > 30
    assert (reports / "index.html").read_text().startswith("<!")
    server.bodies.clear()
    told = alert_tick(place, cursor)
    texts = [json.loads(body)["text"] for body in server.bodies if body.startswith(b'{"text"')]
    assert [text.partition(" failed")[0] for text in texts] == [
        "kv_pipeline: check nightly_report.skipped_rows", "kv_pipeline: check nightly_report.recordings_arrive",
    ]  # fmt: skip
    (event, _) = server.events
    assert event["contexts"]["cache_metrics"].keys() == {
        "type", "breakpoints_used", "system_tokens", "conversation_tokens", "messages", "hit_rate", "savings_usd",
        "model", "time", "lost_tokens",
    }  # fmt: skip
    server.bodies.clear()
    alert_tick(place, told.cursor)
    assert server.bodies == []


def test_a_failed_run_is_told_by_class_and_an_unreachable_webhook_is_tried_again(
    place: Place, server: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    monkeypatch.setenv(WEBHOOK_VARIABLE, "http://127.0.0.1:1/x")
    first = alert_tick(place, None)
    place.instance.add_dynamic_partitions("databases", ["nobody/nothing"])
    assert not place.materialize("raw_requests", "nobody/nothing").success
    monkeypatch.setattr("kv_pipeline.defs.alerts.post", lambda url, message: post(url, message, ()))
    second = alert_tick(place, first.cursor)
    assert second.cursor == first.cursor
    monkeypatch.setenv(WEBHOOK_VARIABLE, server.url)
    alert_tick(place, second.cursor)
    (message,) = server.messages
    assert message["text"].startswith(
        "kv_pipeline: run ingest_databases failed: error: step raw_requests, error InputError (run "
    )


def test_without_an_address_the_sensor_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK_VARIABLE, raising=False)
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    with dg.build_sensor_context(instance=place.instance, resources={"pipeline": place.pipeline}) as context:
        found = alert_sensor(context)
    assert isinstance(found, dg.SkipReason)
    assert WEBHOOK_VARIABLE in str(found.skip_message)


def test_metrics_are_of_the_request_that_lost_most(place: Place) -> None:
    report = place.store.read(CACHE_REPORT, place.store.partitions(CACHE_REPORT.name)).drop_nulls("billed_read_tokens")
    found = cache_metrics(place.store, load_prices())
    assert found["lost_tokens"] == report["lost_tokens"].max() > 0
    (row,) = report.filter(
        pl.col("lost_tokens") == found["lost_tokens"],
        pl.col("requested_at_utc") == datetime.fromisoformat(found["time"]),
    ).iter_rows(named=True)
    billed = sum(row[f"billed_{kind}_tokens"] or 0 for kind in ("read", "write_5m", "write_1h", "input"))
    assert found["hit_rate"] == pytest.approx(row["billed_read_tokens"] / billed)
    assert found["messages"] > 0
    assert found["breakpoints_used"] == row["n_breakpoints"]


@pytest.mark.parametrize(
    ("value", "warn", "error", "expected"),
    [
        (0.7, 0.6, 0.4, (True, "WARN")),
        (0.6, 0.6, 0.4, (True, "WARN")),
        (0.5, 0.6, 0.4, (False, "WARN")),
        (0.3, 0.6, 0.4, (False, "ERROR")),
        (4, 5, 20, (True, "WARN")),
        (6, 5, 20, (False, "WARN")),
        (21, 5, 20, (False, "ERROR")),
        (None, 5, 20, (True, "WARN")),
    ],
)
def test_grades(value: float | None, warn: float, error: float, expected: tuple[bool, str]) -> None:
    found = graded("x", value, warn, error)
    assert (found.passed, found.severity.value) == expected


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KV_PIPELINE_ALERT_HIT_RATE_WARN", "0.9")
    assert (Thresholds().hit_rate_warn, Thresholds().hit_rate_error) == (0.9, 0.4)
    monkeypatch.setenv("KV_PIPELINE_ALERT_HIT_RATE_WARN", "much")
    with pytest.raises(UsageError, match="is 'much', not a number"):
        Thresholds()


def test_all_that_runs_by_itself_is_off_until_switched_on() -> None:
    repository = build_defs().get_repository_def()
    assert {s.name: s.default_status.value for s in repository.sensor_defs} == dict.fromkeys(
        ("landing_sensor", "freshness_sensor", "alert_sensor"), "STOPPED"
    )
    (schedule,) = repository.schedule_defs
    assert (schedule.default_status.value, schedule.cron_schedule) == ("STOPPED", "0 3 * * *")


def test_a_night_that_was_missed_is_noticed(place: Place) -> None:
    """The freshness check, evaluated for real: nothing was ever materialized, so it fails; after a night it passes."""
    (check, _) = (freshness()[0][0], None)
    job = dg.define_asset_job("fresh", selection=dg.AssetSelection.checks(*check.check_keys))
    definitions = dg.Definitions(assets=[nightly_report], asset_checks=[check], jobs=[job], resources={
        "pipeline": place.pipeline, "thresholds": Thresholds()})  # fmt: skip

    def evaluate() -> dg.AssetCheckEvaluation:
        done = definitions.resolve_job_def("fresh").execute_in_process(instance=place.instance)
        (found,) = done.get_asset_check_evaluations()
        return found

    assert (evaluate().passed, evaluate().severity.value) == (False, "ERROR")
    place.instance.report_runless_asset_event(dg.AssetMaterialization("nightly_report"))
    assert evaluate().passed
