"""`kv-pipeline monitor`."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from kv_pipeline.cli.display import console, print_json
from kv_pipeline.cli.tables import open_existing
from kv_pipeline.errors import UsageError
from kv_pipeline.prices.loading import load_prices
from kv_pipeline.remote.url import Location
from kv_pipeline.reports.monitor import Period, monitor
from kv_pipeline.reports.texts import count, dollars, percent

_BAR: Final = 30
_STYLES: Final = {"excellent": "bold green", "good": "green", "fair": "yellow", "poor": "bold red"}


def period_of(days: float | None, since: str | None, until: str | None, now: datetime) -> Period:
    """The period that options name: the last days, or from a time to a time; a date means its whole day, UTC.

    Raises:
        UsageError: A time can't be read, or the options exclude each other.
    """
    if days is not None and since is not None:
        raise UsageError("--days and --since exclude each other. Give one of them.")
    end = None if until is None else _moment(until, "--until", is_end=True)
    start = None if since is None else _moment(since, "--since", is_end=False)
    if days is not None:
        start = (end or now) - timedelta(days=days)
    if start is not None and end is not None and start >= end:
        raise UsageError("The period is empty: --since is not before --until.")
    return Period(start, end)


def limit_of(rate: float | None) -> float | None:
    """A limit as a share: 0.8, 80 and 80.0 all mean 80 %.

    Raises:
        UsageError: It is no rate.
    """
    if rate is None:
        return None
    if not 0 <= rate <= 100:
        raise UsageError(f"--fail-under is {rate:g}, not a rate: give a share from 0 to 1 or a percentage up to 100.")
    return rate if rate <= 1 else rate / 100


def monitor_command(
    where: Location, period: Period, user_id: str | None, prices: Path | None, export: Path | None,
    fail_under: float | None, *, as_json: bool,
) -> bool:  # fmt: skip
    """Print the monitor's report; returns whether the hit rate is below the limit."""
    limit = limit_of(fail_under)
    found = monitor(open_existing(where), load_prices(prices), period, user_id)
    if export is not None:
        _export(export, found)
    if as_json:
        print_json(found)
    else:
        _print(found)
        if export is not None:
            console().print(f"Written to {export}.", markup=False)
    hit_rate = found["overview"]["hit_rate"]
    if limit is None or hit_rate >= limit:
        return False
    none = "" if found["overview"]["n_events"] else "; there are no events in this period"
    print(f"kv-pipeline: hit rate {percent(hit_rate)} is under {percent(limit)}{none}.", file=sys.stderr)  # noqa: T201
    return True


def _moment(text: str, option: str, *, is_end: bool) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} is {text!r}, not a date or time like 2026-11-21 or 2026-11-21T08:00.") from None
    is_date = len(text) <= len("2026-11-21")
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment + timedelta(days=1) if is_end and is_date else moment


def _export(path: Path, found: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}. Name another --export.") from error


def _print(found: dict[str, Any]) -> None:
    out = console()
    shown = found["overview"]
    style = _STYLES[shown["status"]]
    out.print("Prompt cache monitor", style="bold")
    out.print(f"{_period(found)}\n", style="dim", markup=False)
    for label, value in _overview(shown):
        out.print(f"  {label:<24}{value}", markup=False, style=style if label == "hit rate" else "")
    if shown["models_without_price"]:
        out.print(f"  No price is known of: {', '.join(shown['models_without_price'])}.", markup=False)
    out.print("\nBreakpoints, of four a request", style="bold")
    for row in found["breakpoints"]:
        bar = "█" * round(row["share"] * _BAR)
        sections = ", ".join(f"{section} {count(n)}" for section, n in row["sections"].items())
        out.print(f"  {row['breakpoint']}  {bar:<{_BAR}} {percent(row['share']):>8}  {sections}", markup=False)
    _print_recommendations(found["recommendations"])
    out.print(f"\n{found['definition']}", style="dim", markup=False)


def _overview(shown: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("events", count(shown["n_events"])),
        ("hits", f"{count(shown['n_hits'])} ({percent(shown['request_hit_rate'])} of events)"),
        ("misses", count(shown["n_misses"])),
        ("hit rate", f"{percent(shown['hit_rate'])} of tokens, {shown['status']}"),
        ("tokens saved", count(shown["saved_tokens"])),
        ("average per hit", count(shown["average_saved_tokens_per_hit"])),
        ("original cost", dollars(shown["original_cost_usd"])),
        ("cached cost", dollars(shown["cached_cost_usd"])),
        ("savings", f"{dollars(shown['savings_usd'])} ({percent(shown['savings_rate'])})"),
    ]


def _print_recommendations(rows: list[dict[str, Any]]) -> None:
    out = console()
    out.print("\nRecommendations", style="bold")
    if not rows:
        out.print("  None: no avoidable loss was found.")
    for number, row in enumerate(rows, start=1):
        requests = "1 request" if row["n_requests"] == 1 else f"{count(row['n_requests'])} requests"
        lost = f"{count(row['lost_tokens'])} tokens, {dollars(row['lost_usd'])} lost in {requests}"
        out.print(f"  {number}. {row['cause'].replace('_', ' ')}: {lost}", markup=False)
        out.print(f"     {row['remedy']}", markup=False)
        if row["predicted_saving_usd"] is not None:
            out.print(f"     Predicted saving: {dollars(row['predicted_saving_usd'])}.", markup=False)
        dearest = row["evidence"]["dearest"]
        out.print(
            f"     Dearest: request {dearest['request_index']} of {dearest['conversation_id']}", style="dim",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def _period(found: dict[str, Any]) -> str:
    since, until = found["period"]["since_utc"], found["period"]["until_utc"]
    when = "all times" if since is None and until is None else f"{since or 'the beginning'} to {until or 'now'}"
    return f"{when}, {'user ' + found['user'] if found['user'] else 'all users'}"
