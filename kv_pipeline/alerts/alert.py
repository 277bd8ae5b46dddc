"""What is said of a failed check or run: names, numbers, never a text that came from data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that failed.

    Attributes:
        kind: `check` or `run`.
        name: `asset.check`, or the job.
        severity: `warning` or `error`.
        run_id: Dagster's id of the run; empty if there is none.
        facts: Numbers, and names that are ours: values of checks, the step and the class of the error.
    """

    kind: str
    name: str
    severity: str
    run_id: str
    facts: Mapping[str, float | int | bool | str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """One line."""
        return f"kv_pipeline: {self.kind} {self.name} failed"

    @property
    def text(self) -> str:
        """The line with its figures."""
        facts = ", ".join(f"{name} {_shown(value)}" for name, value in self.facts.items())
        where = f" (run {self.run_id[:8]})" if self.run_id else ""
        return f"{self.title}: {self.severity}{': ' + facts if facts else ''}{where}"


def slack_message(alert: Alert) -> dict[str, Any]:
    """Slack's incoming-webhook JSON, which Mattermost and others take, too.

    Source: https://api.slack.com/messaging/webhooks. `text` is what notifications show, `blocks` what the channel does.
    """
    fields = [{"type": "mrkdwn", "text": f"*{name}*\n{_shown(value)}"} for name, value in alert.facts.items()]
    blocks: list[dict[str, Any]] = [{"type": "section", "text": {"type": "plain_text", "text": alert.text}}]
    if fields:
        blocks.append({"type": "section", "fields": fields[:10]})  # Slack takes no more
    return {"text": alert.text, "blocks": blocks}


def _shown(value: float | int | bool | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
