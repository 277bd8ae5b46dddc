"""Figures as pictures: PNG files, and small ones inside Markdown."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Final

import polars as pl

from kv_pipeline.reports.figures import fleet
from kv_pipeline.reports.figures.figure import Figure, rows
from kv_pipeline.reports.frames.money import causes
from kv_pipeline.reports.page.library import compiled
from kv_pipeline.reports.summary import conversation_summary, validation_table
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.store import Store

MARKDOWN_BYTES: Final = 200_000
"""Size of pictures in metadata: Dagster keeps every run's in its database. Those that would exceed it are left out."""
_WIDTH: Final = 760
_SMALL_WIDTH: Final = 360
_SMALL: Final = (fleet.MODELS, fleet.CAUSES_TOKENS, fleet.CONVERSATIONS)


def png(figure: Figure, frames: Mapping[str, pl.DataFrame], scale: float = 1.5, width: int = _WIDTH) -> bytes:
    """A figure as PNG, on white, under its title.

    Args:
        figure: The figure.
        frames: Its frames, by name; they must have something to show.
        scale: Pixels a point.
        width: Points that the plot is wide.
    """
    import vl_convert

    return bytes(vl_convert.vega_to_png(drawn(figure, frames, width), scale=scale))


def drawn(figure: Figure, frames: Mapping[str, pl.DataFrame], width: int = _WIDTH) -> dict[str, Any]:
    """The figure as a Vega specification with its data in it."""
    spec = compiled(figure, width)
    return spec | {
        "title": {"text": figure.title, "anchor": "start", "fontSize": 14},
        "background": "white",
        "padding": 10,
        "data": [_filled(source, frames) for source in spec["data"]],
        "signals": [_set(signal, figure, frames) for signal in spec.get("signals", [])],
    }


def _filled(source: dict[str, Any], frames: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    return source | {"values": rows(frames[source["name"]])} if source["name"] in frames else source


def _set(signal: dict[str, Any], figure: Figure, frames: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """The last request, which pages set themselves."""
    if not (figure.is_linked and signal["name"] == "last_request"):
        return signal
    return signal | {"value": max(int(index) for name in figure.frames for index in frames[name]["request_index"])}


def summary_markdown(store: Store) -> str:
    """The main figures of everything in the store as Markdown with pictures in it, under `MARKDOWN_BYTES`.

    Pictures show rates, counts and names of models, users and causes; nothing else.
    """
    frames = _summary_frames(store)
    parts = list[str]()
    for figure in _SMALL:
        if figure.has_data(frames):
            picture = base64.b64encode(png(figure, frames, 1.0, _SMALL_WIDTH)).decode()
            parts.append(f"![{figure.title}](data:image/png;base64,{picture})")
    sizes = accumulate(len(part) + 2 for part in parts)
    return "\n\n".join(part for part, size in zip(parts, sizes, strict=True) if size < MARKDOWN_BYTES)


def _summary_frames(store: Store) -> dict[str, pl.DataFrame]:
    explained = store.read(CACHE_REPORT, store.partitions(CACHE_REPORT.name))
    of_models = validation_table(store, ["model"]).filter(pl.col("scope") == "conversation", pl.col("lifetime") == "5m")
    billed = conversation_summary(store).with_columns(
        n_billed=pl.col("billed_prompt_tokens").fill_null(0),
        href=pl.lit(""),
    )
    return {
        "model_rates": of_models,
        "causes": causes(explained.with_columns(lost_usd=pl.lit(None, pl.Float64))),
        "conversations": billed,
    }
