"""All definitions in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from kv_pipeline.defs import assets, nightly
from kv_pipeline.defs.alerts import alert_sensor
from kv_pipeline.defs.jobs import JOBS
from kv_pipeline.defs.nightly import freshness
from kv_pipeline.defs.partitions import backfill_policy
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.defs.sensors import landing_sensor
from kv_pipeline.defs.thresholds import Thresholds


def build_defs(*, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The pipeline's definitions.

    Args:
        resource_overrides: Resources to use instead of those from the environment, by name.
    """
    freshness_checks, freshness_sensor = freshness()
    return dg.Definitions(
        # Given here and not to each asset, where Dagster 1.13 warns that backfill policies are beta.
        assets=dg.load_assets_from_modules([assets, nightly], backfill_policy=backfill_policy()),
        asset_checks=freshness_checks,
        jobs=[*JOBS, nightly.nightly],
        schedules=[nightly.nightly_schedule()],
        sensors=[landing_sensor, freshness_sensor, alert_sensor],
        resources={"pipeline": PipelineResource(), "thresholds": Thresholds(), **(resource_overrides or {})},
        executor=dg.in_process_executor,
    )
