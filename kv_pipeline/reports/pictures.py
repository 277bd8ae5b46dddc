"""Figures as pictures."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from kv_pipeline.reports.figures.figure import Figure, bound


def png(figure: Figure, frames: Mapping[str, pl.DataFrame], scale: float = 1.5) -> bytes:
    """A figure as PNG, on white.

    Args:
        figure: The figure.
        frames: Its frames, by name; they must have something to show.
        scale: Pixels a point.
    """
    import vl_convert

    title = {"text": figure.title, "anchor": "start", "fontSize": 14}
    spec = bound(figure, frames) | {"title": title, "background": "white", "padding": 10}
    return bytes(vl_convert.vegalite_to_png(spec, scale=scale))
