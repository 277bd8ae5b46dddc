"""Alerts as Sentry-protocol events, which GlitchTip understands, too. Needs the extra `alerts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kv_pipeline.alerts.alert import Alert
from kv_pipeline.errors import UsageError

FLUSH_S: Final = 10.0
_LEVELS: Final = {"warning": "warning", "error": "error"}


def send(dsn: str, alerts: Sequence[tuple[Alert, Mapping[str, Any]]]) -> int:
    """Send alerts, each with a context `cache_metrics`; returns how many.

    Nothing of this process is sent along: no stack, no local variables, no host name, no breadcrumbs.

    Raises:
        UsageError: sentry-sdk is not installed, or the DSN can't be used.
    """
    try:
        import sentry_sdk
        from sentry_sdk.utils import BadDsn
    except ImportError as error:
        raise UsageError("Sentry events need sentry-sdk: pip install 'kv-pipeline[alerts]'.") from error
    try:
        client = sentry_sdk.Client(
            dsn=dsn, default_integrations=False, auto_enabling_integrations=False,
            include_local_variables=False, max_breadcrumbs=0, server_name="", attach_stacktrace=False,
            auto_session_tracking=False, send_client_reports=False,
        )  # fmt: skip
    except BadDsn as error:
        raise UsageError("The Sentry DSN can't be used. Check KV_PIPELINE_SENTRY_DSN.") from error
    for alert, metrics in alerts:
        client.capture_event(event_of(alert, metrics))
    client.close(timeout=FLUSH_S)
    return len(alerts)


def event_of(alert: Alert, metrics: Mapping[str, Any]) -> Any:  # noqa: ANN401  (sentry-sdk's own type is optional)
    """An event as the protocol has it.

    Source: https://develop.sentry.dev/sdk/data-model/event-payloads/.
    """
    return {
        "message": alert.title,
        "level": _LEVELS[alert.severity],
        "logger": "kv_pipeline",
        "fingerprint": ["kv_pipeline", alert.kind, alert.name],
        "tags": {"kind": alert.kind, "name": alert.name},
        "extra": dict(alert.facts) | ({"run_id": alert.run_id} if alert.run_id else {}),
        "contexts": {"cache_metrics": {"type": "default", **metrics}},
    }
