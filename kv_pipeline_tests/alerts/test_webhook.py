from __future__ import annotations

import pytest

from kv_pipeline.alerts.alert import Alert, slack_message
from kv_pipeline.alerts.webhook import WebhookError, post

ALERT = Alert("check", "nightly_report.hit_rate", "warning", "0123456789", {"value": 0.31234, "warn_at": 0.6, "n": 3})


def test_a_message_is_what_slack_takes(server):
    assert post(server.url, slack_message(ALERT)) == 1
    (message,) = server.messages
    expected = (
        "kv_pipeline: check nightly_report.hit_rate failed: warning: value 0.3123, warn_at 0.6, n 3 (run 01234567)"
    )
    assert message["text"] == expected
    assert message["blocks"][0] == {"type": "section", "text": {"type": "plain_text", "text": expected}}
    assert [entry["text"] for entry in message["blocks"][1]["fields"]] == [
        "*value*\n0.3123",
        "*warn_at*\n0.6",
        "*n*\n3",
    ]
    assert server.paths == ["/services/T0/B0/secret"]


@pytest.mark.parametrize(
    ("answers", "waits"),
    [
        ([(500, {})], [1]),
        ([(503, {}), (502, {})], [1, 4]),
        ([(429, {"Retry-After": "9"})], [9]),
        ([(429, {"Retry-After": "9999"})], [60]),
        ([(429, {"Retry-After": "soon"})], [1]),
    ],
)
def test_what_may_help_is_tried_again_after_a_while(server, answers, waits):
    server.answers = list(answers)
    slept = []
    assert post(server.url, {"text": "x"}, (1, 4, 16), slept.append) == len(answers) + 1
    assert slept == waits
    assert server.messages == [{"text": "x"}] * (len(answers) + 1)


def test_it_gives_up_for_now(server):
    server.answers = [(500, {})] * 9
    with pytest.raises(WebhookError, match="answered 500") as caught:
        post(server.url, {}, (1, 4), lambda _: None)
    assert not caught.value.is_final
    assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_refusals_are_final(server, status):
    server.answers = [(status, {})]
    with pytest.raises(WebhookError, match=f"answered {status}") as caught:
        post(server.url, {}, (1, 4), lambda _: None)
    assert caught.value.is_final
    assert "secret" not in str(caught.value)
    assert len(server.bodies) == 1


def test_nobody_listens():
    slept = []
    with pytest.raises(WebhookError, match="was not reached") as caught:
        post("http://127.0.0.1:1/secret", {}, (1,), slept.append)
    assert (caught.value.is_final, slept) == (False, [1])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "hooks.slack.com"])
def test_other_addresses_are_refused(url):
    with pytest.raises(WebhookError, match="neither http nor https"):
        post(url, {})
