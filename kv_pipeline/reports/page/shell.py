"""The HTML shell of a page: what is in it, escaped, and nothing that loads anything."""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final

import polars as pl

from kv_pipeline.reports.figures.figure import Figure
from kv_pipeline.reports.page.library import packed

_SIGNIFICANT_DIGITS: Final = 6
_PLACEHOLDER: Final = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Column:
    """A column of a table on a page.

    Attributes:
        name: Column of the frame.
        label: Its heading.
        kind: How values are written: text, flag, int, number, percent (of a share), points, usd or seconds.
        href: Column with the address that values lead to.
    """

    name: str
    label: str
    kind: str = "text"
    href: str = ""


@dataclass(frozen=True)
class Table:
    """A sortable table of a frame."""

    name: str
    title: str
    frame: str
    columns: tuple[Column, ...]
    caption: str = ""
    is_wide: bool = True


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    items: tuple[Figure | Table, ...]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A page's content.

    Attributes:
        title: Its heading.
        subtitle: Under it.
        definition: How hit rates are defined, printed beside the figures.
        tiles: Label and value of each main figure.
        sections: In order. Figures and tables whose frames have nothing to show are left out.
        frames: Frames by name.
        pointed: What the bar at the bottom shows of the request that the reader points at.
        home: Address and label of the page above, if there is one.
        library: All figures that pages of this kind can have: one library serves them all.
    """

    title: str
    subtitle: str
    definition: str
    tiles: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    frames: Mapping[str, pl.DataFrame]
    library: tuple[Figure, ...]
    pointed: Sequence[Column] = ()
    home: tuple[str, str] | None = None
    footer: str = field(default="")


def render(page: Page) -> str:
    """The page as one HTML document that needs nothing else."""
    kept = [(section, [item for item in section.items if _has_data(item, page.frames)]) for section in page.sections]
    shown = [(section, items) for section, items in kept if items or section.note]
    values = {
        "title": html.escape(page.title),
        "subtitle": html.escape(page.subtitle),
        "definition": html.escape(page.definition),
        "footer": html.escape(page.footer),
        "navigation": _navigation(page, [section for section, _ in shown]),
        "tiles": "".join(_tile(label, value) for label, value in page.tiles),
        "sections": "".join(_section(number, section, items) for number, (section, items) in enumerate(shown)),
        "data": _data(page, [item for _, items in shown for item in items]),
        "library": packed(page.library),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
    }
    # One pass: what is filled in is never searched for placeholders again.
    return _PLACEHOLDER.sub(lambda match: values[match[1]], _asset("template.html"))


def _has_data(item: Figure | Table, frames: Mapping[str, pl.DataFrame]) -> bool:
    if isinstance(item, Figure):
        return item.has_data(frames)
    return item.frame in frames and not frames[item.frame].is_empty()


def _navigation(page: Page, sections: Sequence[Section]) -> str:
    home = "" if page.home is None else f'<a href="{html.escape(page.home[0])}">← {html.escape(page.home[1])}</a>'
    return home + "".join(
        f'<a href="#section-{number}">{html.escape(section.title)}</a>' for number, section in enumerate(sections)
    )


def _tile(label: str, value: str) -> str:
    return f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'


def _section(number: int, section: Section, items: Sequence[Figure | Table]) -> str:
    note = f'<p class="note">{html.escape(section.note)}</p>' if section.note else ""
    cards = "".join(_card(item) for item in items)
    return f'<section id="section-{number}"><h2>{html.escape(section.title)}</h2>{note}<div class="grid">{cards}</div></section>'  # noqa: E501


def _card(item: Figure | Table) -> str:
    name = html.escape(item.name)
    inner = (
        f'<div class="plot waiting" data-figure="{name}"></div>'
        if isinstance(item, Figure)
        else f'<div class="scroll" data-table="{name}"></div>'
    )
    caption = f'<p class="caption">{html.escape(item.caption)}</p>' if item.caption else ""
    size = "card wide" if item.is_wide else "card"
    return f'<div class="{size}"><h3>{html.escape(item.title)}</h3>{inner}{caption}</div>'


def _data(page: Page, items: Sequence[Figure | Table]) -> str:
    used = {name for item in items for name in (item.frames if isinstance(item, Figure) else (item.frame,))}
    tables = {
        item.name: {"frame": item.frame, "columns": [_column(column) for column in item.columns]}
        for item in items
        if isinstance(item, Table)
    }
    document = {
        "frames": {name: columns(frame) for name, frame in page.frames.items() if name in used},
        "tables": tables,
        "pointed": [[column.name, column.label, column.kind] for column in page.pointed],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")  # nothing in the data can end the script element or open another


def _column(column: Column) -> dict[str, str]:
    described = {"name": column.name, "label": column.label, "kind": column.kind}
    return described | ({"href": column.href} if column.href else {})


def columns(frame: pl.DataFrame) -> dict[str, list[Any]]:
    """A frame as lists of JSON values: not a number becomes null, times become text, floats lose needless digits."""
    finite = pl.selectors.float().fill_nan(None).replace([float("inf"), float("-inf")], None)
    return frame.with_columns(
        finite.round_sig_figs(_SIGNIFICANT_DIGITS),
        pl.selectors.datetime().dt.strftime("%Y-%m-%d %H:%M:%S"),
    ).to_dict(as_series=False)


@functools.cache
def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")
