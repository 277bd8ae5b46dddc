"""What a figure is: a chart over named frames, so that one compiled chart serves every page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import altair as alt
import polars as pl

HEIGHT: Final = 220
CONTAINER: Final = "container"

SIMULATED: Final = "#4a8fd6"
PREDICTED: Final = "#9a6fe0"
BILLED: Final = "#2fa274"
INPUT: Final = "#d8574d"
WRITE_5M: Final = "#e0a030"
WRITE_1H: Final = "#b07cd8"
NEUTRAL: Final = "#8a94a3"
"""Colours that stand out on a white and on a dark page alike."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A chart and what stands beside it.

    Attributes:
        name: Its id on a page and its file name.
        title: Above it.
        caption: Below it: what is shown, and the definition of what is counted.
        frames: Names of the frames it is drawn from.
        build: Makes the chart, over `alt.NamedData` of those names.
        is_linked: Whether its x axis is the request index, so it zooms and points with the others.
        is_wide: Whether it takes the page's whole width.
        needs: Column of the first frame that must have a value other than 0 for the figure to show anything.
    """

    name: str
    title: str
    caption: str
    frames: tuple[str, ...]
    build: Callable[[], alt.TopLevelMixin]
    is_linked: bool = False
    is_wide: bool = False
    needs: str = ""

    def has_data(self, frames: Mapping[str, pl.DataFrame]) -> bool:
        """Whether there is anything to draw."""
        if any(name not in frames or frames[name].is_empty() for name in self.frames):
            return False
        if not self.needs:
            return True
        values = frames[self.frames[0]][self.needs].drop_nulls()
        return bool((values != 0).any()) if values.dtype.is_numeric() else not values.is_empty()


def specification(figure: Figure, width: int | str = CONTAINER) -> dict[str, Any]:
    """The figure's Vega-Lite specification, without data.

    Args:
        figure: The figure.
        width: Points that the plot is wide, or the width of what it is in.
    """
    chart = figure.build()
    if figure.is_linked:
        chart = chart.add_params(*_linking())  # type: ignore[attr-defined]
    return chart.properties(width=width).to_dict()


def rows(frame: pl.DataFrame) -> Rows:
    """A frame as JSON values; not a number becomes null, times become text."""
    times = frame.select(pl.selectors.datetime()).columns
    return frame.with_columns(
        pl.selectors.float().fill_nan(None).replace([float("inf"), float("-inf")], None),
        pl.col(times).dt.strftime("%Y-%m-%d %H:%M:%S"),
    ).to_dicts()


def requests_axis(title: str | None = "request") -> alt.X:
    """The x axis that linked figures share: it shows the requests that the page's signals name."""
    shown = [alt.ExprRef("first_request - 0.5"), alt.ExprRef("last_request + 0.5")]
    scale = alt.Scale(domain=shown, nice=False, zero=False)
    return alt.X("request_index:Q", title=title, scale=scale, axis=alt.Axis(tickMinStep=1, format="d"))


def of_agent(chart: alt.Chart) -> alt.Chart:
    """The chart with only the agent that the page's signal names."""
    return chart.transform_filter("shown_agent == '' || datum.agent_id == shown_agent")


def in_view(chart: alt.Chart) -> alt.Chart:
    """The chart with only the requests that the x axis shows."""
    return chart.transform_filter("datum.request_index >= first_request && datum.request_index <= last_request")


@functools.cache
def _linking() -> tuple[alt.Parameter, ...]:
    names = {"first_request": 0, "last_request": 0, "shown_agent": ""}
    return tuple(alt.param(name=name, value=value) for name, value in names.items())
