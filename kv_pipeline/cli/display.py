"""How results look on a terminal: rich tables, plain numbers, progress on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from kv_pipeline import progress
from kv_pipeline.errors import Skip

_UNBOUNDED = 200
"""Width of tables that are not printed to a terminal, in characters."""
_FLOAT_FORMATS = {"points": "+.2f", "gb": ",.2f"}
"""How floats are printed, by the unit that ends a column's name; the others are rates."""
SHORT_ID = 8
"""Characters of a session's name that tell it apart, as `export --conversation-id` takes them."""
_NARROW = 140
"""Terminals below this width get short names and times."""
_SHOWN_OF_A_REASON = 3


def say_waiting() -> None:
    """Tell that another process writes the store."""
    print("kv-pipeline: another command or run is working on this store; waiting for it.", file=sys.stderr)  # noqa: T201


def print_file_notices(notices: Iterable[Skip]) -> None:
    """Say what of files was left out or repaired; of many with one reason the first, and how many more."""
    counts: Counter[tuple[str, bool]] = Counter()
    for notice in notices:
        counts[notice.reason, notice.is_left_out] += 1
        if counts[notice.reason, notice.is_left_out] <= _SHOWN_OF_A_REASON:
            found = f"{notice.source}: {notice.found} ({notice.reason}). {notice.remedy}"
            console().print(f"{_what(notice.is_left_out)}: {found}", markup=False)
    for (reason, is_left_out), n in counts.items():
        if n > _SHOWN_OF_A_REASON:
            more = f"{n - _SHOWN_OF_A_REASON} more with reason {reason}; --json lists them all."
            console().print(f"{_what(is_left_out)}: {more}")


def _what(is_left_out: bool) -> str:
    return "Left out" if is_left_out else "Note"


def console() -> Console:
    """Standard output; as wide as needed when it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else _UNBOUNDED, highlight=False)


def is_narrow() -> bool:
    """Whether long names would be folded beyond recognition."""
    return console().width < _NARROW


def print_json(value: Any) -> None:  # noqa: ANN401  (JSON is any type)
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(title: str, frame: pl.DataFrame, columns: Sequence[tuple[str, str]], *, caption: str = "") -> None:
    """Print columns of a frame under readable headings; numbers are set to the right.

    Args:
        title: Above the table.
        frame: Its rows.
        columns: Column name and heading.
        caption: Below the table.
    """
    table = Table(header_style="bold")
    for name, heading in columns:
        is_number = frame.schema[name].is_numeric()
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    for row in frame.select([name for name, _ in columns]).iter_rows(named=True):
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    out = console()
    out.print(title, style="bold")  # a title of the table itself would wrap at the table's width
    out.print(table)
    if caption:
        out.print(caption, style="dim")


def _cell(name: str, value: object) -> str:
    text = str(value)
    if value is None:
        text = "-"
    elif isinstance(value, float):
        text = format(value, _FLOAT_FORMATS.get(name.rpartition("_")[2], ".2%"))
    elif isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    elif isinstance(value, datetime):
        text = f"{value:%Y-%m-%d %H:%M:%S}"
    return text


@contextlib.contextmanager
def showing_progress() -> Iterator[None]:
    """Show how far each asset is while the block runs; nothing if standard error is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: progress.Step) -> None:
            if step.asset not in tasks:
                tasks[step.asset] = bars.add_task(step.asset, total=step.total)
            bars.update(tasks[step.asset], completed=step.done, total=step.total)

        with progress.watching(show):
            yield
