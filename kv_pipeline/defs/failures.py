"""What to tell the user of a run that failed."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from kv_pipeline.errors import StoreError


def cause_of_failure(job: str, failures: Sequence[dg.DagsterEvent]) -> StoreError:
    """The innermost error of the first step that failed.

    Args:
        job: The run's job.
        failures: Its events of failed steps, in order.
    """
    error = failures[0].step_failure_data.error if failures else None
    while error is not None and error.cause is not None:
        error = error.cause
    why = error.message.strip() if error is not None else "no step said why"
    return StoreError(f"{failures[0].step_key if failures else job} failed: {why}")
