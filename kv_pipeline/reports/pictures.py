"""Figures as pictures: PNG files, and small ones inside Markdown."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final

import polars as pl

from kv_pipeline.reports.figures import fleet
from kv_pipeline.reports.figures.figure import PNG_WIDTH, Figure, bound
from kv_pipeline.reports.frames.money import causes
from kv_pipeline.reports.summary import conversation_summary, validation_table
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.store import Store

_SMALL_WIDTH: Final = 360
_SMALL: Final = (fleet.MODELS, fleet.CAUSES_TOKENS, fleet.CONVERSATIONS)


def png(figure: Figure, frames: Mapping[str, pl.DataFrame], scale: float = 1.5, width: int = PNG_WIDTH) -> bytes:
    """A figure as PNG, on white.

    Args:
        figure: The figure.
        frames: Its frames, by name; they must have something to show.
        scale: Pixels a point.
        width: Points that the plot is wide.
    """
    import vl_convert

    title = {"text": figure.title, "anchor": "start", "fontSize": 14}
    spec = bound(figure, frames) | {"title": title, "background": "white", "padding": 10, "width": width}
    return bytes(vl_convert.vegalite_to_png(spec, scale=scale))


def summary_markdown(store: Store) -> str:
    """The main figures of everything in the store as Markdown with pictures in it, about 100 KB.

    Pictures show rates, counts and ids of conversations and models; nothing else.
    """
    frames = _summary_frames(store)
    return "\n\n".join(
        f"![{figure.title}](data:image/png;base64,{base64.b64encode(png(figure, frames, 1.0, _SMALL_WIDTH)).decode()})"
        for figure in _SMALL
        if figure.has_data(frames)
    )


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
