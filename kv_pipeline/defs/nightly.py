"""Every night: bring the store up to date, purge what is too old, write reports and figures, and judge them."""

# No `from __future__ import annotations` here: Dagster reads the context annotation as a type.

import json
import os
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Optional

import dagster as dg
from dagster import SupersessionWarning
from pydantic import Field

from kv_pipeline.atomic import write_bytes
from kv_pipeline.defs.checks import quality_spec
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.defs.thresholds import Thresholds, graded
from kv_pipeline.environment import number
from kv_pipeline.prices.loading import load_prices
from kv_pipeline.remote.names import REPORTS
from kv_pipeline.remote.url import location
from kv_pipeline.reports.health import Health, health
from kv_pipeline.reports.monitor import Period, monitor
from kv_pipeline.reports.write import ReportOptions, write_reports
from kv_pipeline.runner import Inputs, RunOutcome, bring_up_to_date
from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.steps.purge import purge_text
from kv_pipeline.store import Store

CRON_VARIABLE: Final = "KV_PIPELINE_NIGHTLY_CRON"
TIMEZONE_VARIABLE: Final = "KV_PIPELINE_TIMEZONE"
RETENTION_VARIABLE: Final = "KV_PIPELINE_RETENTION_DAYS"
_NAME: Final = "nightly_report"


def _retention_days() -> float | None:
    return number(RETENTION_VARIABLE, "days", at_least=0)


class NightlyConfig(dg.Config):
    """What to do every night."""

    retention_days: Optional[float] = Field(  # noqa: UP045
        default_factory=_retention_days, description="Content that no request of these days contains is purged."
    )
    verify: bool = Field(default=True, description="Read every file of the store, and make damaged ones again.")


@dg.asset(
    name=_NAME,
    group_name="nightly",  # not part of the chain of assets: in a group of theirs it would count as missing there
    kinds={"html", "json"},
    check_specs=[
        quality_spec(_NAME, "hit_rate", "Caching works: billed hit rate of the last days, 0 to 1."),
        quality_spec(
            _NAME, "validation_gap", "What is predicted is what is billed: predicted less billed hit rate, points."
        ),
        quality_spec(_NAME, "match_rate", "Transcripts' answers are in the recordings: share found there, 0 to 1."),
        quality_spec(_NAME, "skipped_rows", "All input is used: share of requests and files left out, 0 to 1."),
        quality_spec(_NAME, "recordings_arrive", "Requests are recorded: hours since the newest one."),
    ],
)
def nightly_report(
    context: dg.AssetExecutionContext, config: NightlyConfig, pipeline: PipelineResource, thresholds: Thresholds
) -> dg.MaterializeResult:
    """Everything that is new in the landing folder, as `kv-pipeline run` reads it; then reports and monitor.json.

    What has to be materialized for that is materialized in runs of their own, by the three jobs.
    """
    store, now = pipeline.open_store(), datetime.now(UTC)
    inputs = Inputs(location(pipeline.inbox), tuple(map(Path, pipeline.paths)))
    outcome = bring_up_to_date(store, inputs, verify_all=config.verify, instance=context.instance)
    n_purged = 0
    if config.retention_days is not None:
        n_purged = purge_text(store, now - timedelta(days=config.retention_days)).n_segments
    rates = write_all(store, store.root / REPORTS, now, thresholds.days)
    figures = health(store, outcome.skipped, now)
    return dg.MaterializeResult(
        metadata={**_metadata(outcome), "purged_segments": n_purged, **_shown(rates)},
        check_results=judged(figures, rates, thresholds),
    )


def write_all(store: Store, out: Path, now: datetime, days: float) -> dict[str, float]:
    """Write report pages, monitor.json and monitor-recent.json.

    Returns:
        `hit_rate` of all times; `recent_hit_rate` and `recent_events` of the last days.
    """
    prices = load_prices()
    if store.partitions(TRACES.name):
        write_reports(store, out, ReportOptions(prices))
    always, recent = (monitor(store, prices, period) for period in (Period(), Period(now - timedelta(days=days))))
    for name, found in (("monitor.json", always), ("monitor-recent.json", recent)):
        write_bytes(out / name, (json.dumps(found, indent=2) + "\n").encode())
    return {
        "hit_rate": always["overview"]["hit_rate"],
        "recent_hit_rate": recent["overview"]["hit_rate"],
        "recent_events": recent["overview"]["n_events"],
    }


def judged(figures: Health, rates: dict[str, float], limits: Thresholds) -> Sequence[dg.AssetCheckResult]:
    """Results of the checks."""
    n_recent = int(rates["recent_events"])
    hit_rate = rates["recent_hit_rate"] if n_recent else None
    n_left_out = figures.n_left_out
    return [
        graded("hit_rate", hit_rate, limits.hit_rate_warn, limits.hit_rate_error, events=n_recent),
        graded(
            "validation_gap", figures.validation_gap_points, limits.validation_gap_warn, limits.validation_gap_error
        ),
        graded("match_rate", figures.match_rate, limits.match_rate_warn, limits.match_rate_error),
        graded(
            "skipped_rows", figures.skipped_share, limits.skipped_share_warn, limits.skipped_share_error,
            left_out=n_left_out,
        ),
        graded("recordings_arrive", figures.age_h, limits.age_h_warn, limits.age_h_error),
    ]  # fmt: skip


def _metadata(outcome: RunOutcome) -> dict[str, Any]:
    return {
        "recomputed_partitions": dg.MetadataValue.json(outcome.recomputed),
        "notices": outcome.skipped.height,
        "left_out": int(outcome.skipped["is_left_out"].sum()),
        "quarantined_files": len(outcome.quarantined),
        "recordings_not_in_landing": len(outcome.not_in_landing),
    }


def _shown(rates: dict[str, float]) -> dict[str, float]:
    """Four digits; and no rate of no requests."""
    return {name: round(rate, 4) for name, rate in rates.items() if name != "recent_hit_rate" or rates["recent_events"]}


nightly = dg.define_asset_job(
    "nightly",
    selection=dg.AssetSelection.assets(_NAME).without_checks() | dg.AssetSelection.checks(
        *(dg.AssetCheckKey(dg.AssetKey(_NAME), name) for name in
          ("hit_rate", "validation_gap", "match_rate", "skipped_rows", "recordings_arrive"))
    ),
    description="What `kv-pipeline run` does, then retention, reports, monitor.json and their checks.",
)  # fmt: skip


def nightly_schedule() -> dg.ScheduleDefinition:
    """The schedule, off until switched on."""
    return dg.ScheduleDefinition(
        name="nightly_schedule",
        job=nightly,
        cron_schedule=os.environ.get(CRON_VARIABLE, "0 3 * * *"),
        execution_timezone=os.environ.get(TIMEZONE_VARIABLE, "UTC"),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=str(nightly.description),
    )


def freshness() -> tuple[Sequence[dg.AssetChecksDefinition], dg.SensorDefinition]:
    """The check that nights were not missed, and the sensor that evaluates it, off until switched on."""
    with warnings.catch_warnings():
        # A FreshnessPolicy, which supersedes this, is no check: it fails none, so that nobody would be alerted.
        warnings.simplefilter("ignore", category=SupersessionWarning)
        checks = dg.build_last_update_freshness_checks(
            assets=[nightly_report],
            lower_bound_delta=timedelta(hours=Thresholds().fresh_h),
            severity=dg.AssetCheckSeverity.ERROR,
        )
        sensor = dg.build_sensor_for_freshness_checks(
            freshness_checks=checks,
            minimum_interval_seconds=600,
            name="freshness_sensor",
            default_status=dg.DefaultSensorStatus.STOPPED,
        )
    return checks, sensor
