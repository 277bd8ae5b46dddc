from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kv_pipeline.alerts.alert import Alert
from kv_pipeline.alerts.sentry import send
from kv_pipeline.errors import UsageError

ALERT = Alert("run", "nightly", "error", "0123456789", {"step": "nightly_report", "error": "StoreError"})
METRICS = {"hit_rate": 0.25, "model": "claude-x", "messages": 4, "savings_usd": None}


def test_an_event_has_the_metrics_and_nothing_of_the_machine(server):
    private = "text that a local variable holds"
    assert send(server.dsn, [(ALERT, METRICS)]) == 1
    (event,) = server.events
    assert server.paths == ["/api/7/envelope/"]
    assert event["message"] == "kv_pipeline: run nightly failed"
    assert (event["level"], event["tags"]) == ("error", {"kind": "run", "name": "nightly"})
    assert event["contexts"]["cache_metrics"] == {"type": "default", **METRICS}
    assert event["extra"] == {"run_id": "0123456789", "step": "nightly_report", "error": "StoreError"}
    assert event["fingerprint"] == ["kv_pipeline", "run", "nightly"]
    sent = b"".join(server.bodies)
    for text in (private, socket.gethostname(), str(Path.cwd()), "stacktrace", "breadcrumbs"):
        assert text.encode() not in sent


def test_a_dsn_that_is_none():
    with pytest.raises(UsageError, match="DSN can't be used"):
        send("http://nobody", [(ALERT, METRICS)])


def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys\nsys.modules['sentry_sdk'] = None\nfrom kv_pipeline.alerts.sentry import send\n"
        "try:\n    send('http://a@127.0.0.1/1', [])\nexcept Exception as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'kv-pipeline[alerts]'" in done.stdout


def test_alerts_import_no_sdk_before_it_is_needed():
    code = "import sys, kv_pipeline.alerts.sentry, kv_pipeline.alerts.webhook\nprint('sentry_sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
