"""A sensor that tells of failed checks and runs: to a webhook, and to Sentry."""

# No `from __future__ import annotations` here: Dagster reads the context annotation as a type.

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import dagster as dg

from kv_pipeline.alerts.alert import Alert, slack_message
from kv_pipeline.alerts.webhook import WebhookError, post
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.errors import KvPipelineError

WEBHOOK_VARIABLE: Final = "KV_PIPELINE_WEBHOOK_URL"
DSN_VARIABLE: Final = "KV_PIPELINE_SENTRY_DSN"
INTERVAL_S: Final = 60
LAST_RUNS: Final = 200
"""Finished runs that are looked at in a tick, the last ones."""
_FINISHED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_CHECK, _FAILURE = dg.DagsterEventType.ASSET_CHECK_EVALUATION, dg.DagsterEventType.RUN_FAILURE
DESCRIPTION: Final = f"""Tells of failed checks and runs.

Posts Slack-compatible JSON to {WEBHOOK_VARIABLE}, and Sentry events to {DSN_VARIABLE}; each only if it is set.
Names and numbers only, never content. A run's checks are told when it has ended. What can't
be delivered is tried again at the next tick. Begins with what fails after it was switched on.
"""


@dg.sensor(
    minimum_interval_seconds=INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=DESCRIPTION,
)
def alert_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult | dg.SkipReason:
    """Post what failed since the last tick; see `DESCRIPTION`."""
    url, dsn = os.environ.get(WEBHOOK_VARIABLE), os.environ.get(DSN_VARIABLE)
    if not (url or dsn):
        return dg.SkipReason(f"Neither {WEBHOOK_VARIABLE} nor {DSN_VARIABLE} is set.")
    cursor = _Cursor.read(context)
    n_sent = 0
    for run in _finished(context.instance):
        if run.run_id in cursor.done:
            continue
        for number, alert in enumerate(_alerts(context.instance, run)):
            if number < cursor.n_delivered.get(run.run_id, 0):
                continue
            try:
                _deliver(context, pipeline, alert, url, dsn)
            except WebhookError as error:
                if not error.is_final:
                    return dg.SensorResult(skip_reason=str(error), cursor=cursor.text)
                context.log.error(str(error))
            n_sent += 1
            cursor.n_delivered[run.run_id] = number + 1
        cursor.done[run.run_id] = True
    return dg.SensorResult(skip_reason=f"Alerts: {n_sent}.", cursor=cursor.text)


class _Cursor(NamedTuple):
    """What was told. No times: a clock that is set back must not hide anything.

    Attributes:
        done: Runs that were dealt with, in order; as many as are looked at.
        n_delivered: Of runs that are not, how many of their alerts were delivered.
    """

    done: dict[str, bool]
    n_delivered: dict[str, int]

    @classmethod
    def read(cls, context: dg.SensorEvaluationContext) -> "_Cursor":
        """From the instance; at first all runs that there are count as told."""
        if context.cursor:
            done, n_delivered = json.loads(context.cursor)
            return cls(dict.fromkeys(done, True), n_delivered)
        return cls(dict.fromkeys((run.run_id for run in _finished(context.instance)), True), {})

    @property
    def text(self) -> str:
        """As kept by the instance."""
        pending = {run_id: number for run_id, number in self.n_delivered.items() if run_id not in self.done}
        return json.dumps([list(self.done)[-2 * LAST_RUNS :], pending])


def _finished(instance: dg.DagsterInstance) -> Sequence[dg.DagsterRun]:
    """The last runs that have finished, first to last."""
    return instance.get_runs(dg.RunsFilter(statuses=_FINISHED), limit=LAST_RUNS)[::-1]


def _alerts(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[Alert]:
    for entry in instance.all_logs(run.run_id, of_type={_CHECK, _FAILURE}):
        event = entry.get_dagster_event()
        alert = _of_check(event, run.run_id) if event.event_type is _CHECK else _of_run(event, run.run_id)
        if alert is not None:
            yield alert


def _of_check(event: dg.DagsterEvent, run_id: str) -> Alert | None:
    found = event.asset_check_evaluation_data
    if found.passed:
        return None
    name = f"{found.asset_key.to_user_string()}.{found.check_name}"
    severity = "error" if found.severity is dg.AssetCheckSeverity.ERROR else "warning"
    return Alert("check", name, severity, run_id, _numbers(found.metadata))


def _numbers(metadata: Mapping[str, Any]) -> dict[str, float | int | bool | str]:
    """Texts stay where they are: only numbers and truth values are told."""
    values = {name: getattr(value, "value", None) for name, value in metadata.items()}
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float))}


def _of_run(event: dg.DagsterEvent, run_id: str) -> Alert:
    """The step and the class of the innermost error; its message could quote anything."""
    facts: dict[str, float | int | bool | str] = {}
    failed = event.job_failure_data.first_step_failure_event
    if failed is not None and failed.step_key:
        facts["step"] = failed.step_key
        error = failed.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None and error.cls_name:
            facts["error"] = error.cls_name
    return Alert("run", event.job_name, "error", run_id, facts)


def _deliver(
    context: dg.SensorEvaluationContext, pipeline: PipelineResource, alert: Alert, url: str | None, dsn: str | None
) -> None:
    if url:
        post(url, slack_message(alert))
    if dsn:
        from kv_pipeline.alerts.sentry import send

        try:
            send(dsn, [(alert, _metrics(pipeline))])
        except KvPipelineError as error:
            context.log.error(str(error))


def _metrics(pipeline: PipelineResource) -> dict[str, Any]:
    """Of a store that can't be read there are none: that is then what the alert is about."""
    from kv_pipeline.prices.loading import load_prices
    from kv_pipeline.reports.cache_metrics import cache_metrics

    try:
        return cache_metrics(pipeline.open_store(), load_prices())
    except KvPipelineError:
        return {}
