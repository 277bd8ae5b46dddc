"""`kv-pipeline report`."""

from __future__ import annotations

from pathlib import Path

from kv_pipeline import progress
from kv_pipeline.cli.display import console, print_json, showing_progress
from kv_pipeline.cli.tables import open_existing
from kv_pipeline.reports.write import ReportOptions, ReportResult, write_reports
from kv_pipeline.steps.selection import selected_conversations
from kv_pipeline.store import Store


def report_command(
    store_path: Path, out: Path, options: ReportOptions, conversation_ids: list[str] | None, *, as_json: bool
) -> None:
    """Write the pages and say where they are."""
    store = open_existing(store_path)
    with showing_progress():
        advance = progress.counter("report", len(selected_conversations(store, conversation_ids)))
        result = write_reports(store, out, options, conversation_ids, advance)
    (_print_json if as_json else _print)(result)


def text_command(store: Store, options: ReportOptions, conversation_ids: list[str] | None) -> None:
    """Print the statistics."""


def _print(result: ReportResult) -> None:
    pictures = f" and {len(result.pictures)} pictures" if result.pictures else ""
    out = console()
    out.print(f"{1 + len(result.pages)} pages{pictures} of {result.n_requests:,} requests.")
    out.print(f"Open {result.index} in a browser; it needs no network.", soft_wrap=True)


def _print_json(result: ReportResult) -> None:
    print_json(
        {
            "index": str(result.index),
            "pages": [str(path) for path in result.pages],
            "pictures": [str(path) for path in result.pictures],
            "n_requests": result.n_requests,
        }
    )
