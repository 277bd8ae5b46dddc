"""`kv-pipeline report`."""

from __future__ import annotations

import sys
from pathlib import Path

from kv_pipeline import progress
from kv_pipeline.cli.display import console, print_json, showing_progress
from kv_pipeline.cli.tables import open_existing
from kv_pipeline.kv_models import DEFAULT_KV_MODEL
from kv_pipeline.prices.loading import load_prices
from kv_pipeline.remote.url import Location
from kv_pipeline.reports.text import statistics, text
from kv_pipeline.reports.write import ReportOptions, ReportResult, write_reports
from kv_pipeline.steps.selection import selected_conversations


def report_command(
    where: Location, out: Path | None, conversation_ids: list[str] | None, options: ReportOptions, *,
    as_text: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write the pages and say where they are, or print the statistics, or both."""
    store = open_existing(where)
    n_conversations = len(selected_conversations(store, conversation_ids))
    if as_text:
        with showing_progress():
            advance = progress.counter("statistics", n_conversations)
            found = statistics(store, options.prices, conversation_ids, advance)
        sys.stdout.write(text(found))
    if out is not None:
        with showing_progress():
            advance = progress.counter("report", n_conversations)
            result = write_reports(store, out, options, conversation_ids, advance)
        (_print_json if as_json else _print)(result)


def options_of(prices: Path | None, kv_model: str | None, *, with_png: bool, with_content_reuse: bool) -> ReportOptions:
    """Options as given on the command line.

    Raises:
        UsageError: The price file can't be used, or the model is not known.
    """
    options = ReportOptions(load_prices(prices), kv_model or DEFAULT_KV_MODEL, with_png, with_content_reuse)
    options.kv_bytes_per_token  # noqa: B018  (an unknown model is told at once)
    return options


def _print(result: ReportResult) -> None:
    pictures = f" and {len(result.pictures)} pictures" if result.pictures else ""
    out = console()
    out.print(f"{1 + len(result.pages)} pages{pictures} of {result.n_requests:,} requests.")
    out.print(f"Open {result.index} in a browser; it needs no network.", soft_wrap=True, markup=False)


def _print_json(result: ReportResult) -> None:
    print_json(
        {
            "index": str(result.index),
            "pages": [str(path) for path in result.pages],
            "pictures": [str(path) for path in result.pictures],
            "n_requests": result.n_requests,
        }
    )
