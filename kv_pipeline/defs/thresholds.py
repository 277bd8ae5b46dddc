"""When a figure is worth a warning, and when it is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import dagster as dg
from pydantic import Field

from kv_pipeline.environment import number

PREFIX: Final = "KV_PIPELINE_ALERT_"


def _limit(name: str, default: float, description: str) -> Any:  # noqa: ANN401  (a field of any model)
    return Field(default_factory=_from_environment(name, default), description=description)


def _from_environment(name: str, default: float) -> Callable[[], float]:
    variable = PREFIX + name.upper()

    def read() -> float:
        found = number(variable)
        return default if found is None else found

    return read


class Thresholds(dg.ConfigurableResource[Any]):
    """Limits of the checks on `nightly_report`; each can be set as KV_PIPELINE_ALERT_<NAME>, too.

    Past the first limit of a pair a check fails with a warning, past the second with an error.
    """

    hit_rate_warn: float = _limit("hit_rate_warn", 0.6, "Billed hit rate of the last days, 0 to 1.")
    hit_rate_error: float = _limit("hit_rate_error", 0.4, "The same.")
    validation_gap_warn: float = _limit("validation_gap_warn", 5, "Predicted less billed hit rate, points.")
    validation_gap_error: float = _limit("validation_gap_error", 20, "The same.")
    match_rate_warn: float = _limit("match_rate_warn", 0.95, "Share of transcripts' answers found in recordings.")
    match_rate_error: float = _limit("match_rate_error", 0.5, "The same.")
    skipped_share_warn: float = _limit("skipped_share_warn", 0.0, "Share of requests and files left out, 0 to 1.")
    skipped_share_error: float = _limit("skipped_share_error", 0.1, "The same.")
    age_h_warn: float = _limit("age_h_warn", 36, "Hours since the newest recorded request.")
    age_h_error: float = _limit("age_h_error", 168, "The same.")
    days: float = _limit("days", 7, "Days that the hit rate is of.")
    fresh_h: float = _limit("fresh_h", 36, "Hours after which a nightly report that was not renewed is overdue.")


def graded(name: str, value: float | None, warn: float, error: float, **counts: float) -> dg.AssetCheckResult:
    """A check's result: passed, a warning past one limit, an error past another.

    Args:
        name: Name of the check.
        value: What was found; None, where there is nothing to judge, passes.
        warn: First limit; below the second if small values are good, above if large ones are.
        error: Second limit.
        counts: What else to show.
    """
    is_small_good = warn < error
    past = [value is not None and (value > limit if is_small_good else value < limit) for limit in (warn, error)]
    severity = dg.AssetCheckSeverity.ERROR if past[1] else dg.AssetCheckSeverity.WARN
    shown: dict[str, float] = {} if value is None else {"value": round(value, 4)}
    metadata = {**shown, "warn_at": warn, "error_at": error, **counts}
    return dg.AssetCheckResult(check_name=name, passed=not any(past), severity=severity, metadata=metadata)
