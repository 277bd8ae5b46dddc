"""Curves of reuse: lifetimes, capacities, working sets, and how often blocks were computed."""

from __future__ import annotations

from typing import Final

import altair as alt

from kv_pipeline.reports.figures.figure import (
    BILLED,
    HEIGHT,
    INPUT,
    NEUTRAL,
    PREDICTED,
    SIMULATED,
    WRITE_5M,
    Figure,
)

_RATE_AXIS: Final = alt.Axis(format="%")
_POLICIES: Final = {"lru_hit_rate": "LRU", "belady_hit_rate": "best possible (Belady)"}
SCOPES: Final = {"conversation": "each conversation alone", "fleet": "one cache for all conversations"}
"""Who shares the simulated cache, by the name for people."""
_WINDOWS: Final = {60: "1 min", 300: "5 min", 900: "15 min", 3600: "60 min"}


def _ttl() -> alt.Chart:
    return (
        alt.Chart(alt.NamedData("ttl_curve"))
        .mark_line(point=True)
        .encode(
            x=alt.X("lifetime:N", title="lifetime from the last use", sort=None, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("hit_rate:Q", title="hit rate", axis=_RATE_AXIS, scale=alt.Scale(zero=False)),
            color=alt.Color("scope:N", title=None, legend=alt.Legend(orient="top"),
                            scale=alt.Scale(domain=list(SCOPES.values()), range=[SIMULATED, PREDICTED])),
            tooltip=[alt.Tooltip("lifetime:N"), alt.Tooltip("scope:N"),
                     alt.Tooltip("hit_rate:Q", title="hit rate", format=".2%"),
                     alt.Tooltip("hit_tokens:Q", title="hit tokens", format=",d"),
                     alt.Tooltip("prefill_blocks:Q", title="blocks computed", format=",d"),
                     alt.Tooltip("mean_resident_blocks:Q", title="blocks held on average", format=",.0f")],
        )
        .properties(height=HEIGHT)
    )  # fmt: skip


def _capacity() -> alt.Chart:
    names = " : ".join(f"datum.column == '{column}' ? '{label}'" for column, label in _POLICIES.items())
    return (
        alt.Chart(alt.NamedData("capacity_curve"))
        .transform_fold(list(_POLICIES), as_=["column", "hit_rate"])
        .transform_calculate(policy=f"{names} : ''")
        .mark_line(point=True)
        .encode(
            x=alt.X("capacity_blocks:Q", title="capacity in blocks", scale=alt.Scale(type="log", base=2),
                    axis=alt.Axis(format="~s")),
            y=alt.Y("hit_rate:Q", title="hit rate", axis=_RATE_AXIS, scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("policy:N", title=None, legend=alt.Legend(orient="top"),
                            scale=alt.Scale(domain=list(_POLICIES.values()), range=[SIMULATED, NEUTRAL])),
            strokeDash=alt.StrokeDash("policy:N", legend=None,
                                      scale=alt.Scale(domain=list(_POLICIES.values()), range=[[1, 0], [4, 3]])),
            tooltip=[alt.Tooltip("policy:N"), alt.Tooltip("hit_rate:Q", title="hit rate", format=".2%"),
                     alt.Tooltip("capacity_blocks:Q", title="blocks", format=",d"),
                     alt.Tooltip("capacity_tokens:Q", title="tokens", format=",d"),
                     alt.Tooltip("capacity_gb:Q", title="GB", format=",.3~f")],
        )
        .properties(height=HEIGHT)
    )  # fmt: skip


def _working_set() -> alt.Chart:
    names = " : ".join(f"datum.window_s == {window} ? '{label}'" for window, label in _WINDOWS.items())
    colours = [BILLED, SIMULATED, WRITE_5M, PREDICTED]
    return (
        alt.Chart(alt.NamedData("working_set"))
        .transform_calculate(window=f"{names} : datum.window_s + ' s'", minutes="datum.t_s / 60")
        .mark_line(interpolate="step-after", strokeWidth=1.4)
        .encode(
            x=alt.X("minutes:Q", title="minutes since the first request"),
            y=alt.Y("blocks:Q", title="distinct blocks used in the window", axis=alt.Axis(format="~s")),
            color=alt.Color("window:N", title=None, legend=alt.Legend(orient="top"),
                            scale=alt.Scale(domain=list(_WINDOWS.values()), range=colours)),
            tooltip=[alt.Tooltip("window:N"), alt.Tooltip("minutes:Q", format=",.1f"),
                     alt.Tooltip("blocks:Q", format=",d")],
        )
        .properties(height=HEIGHT)
    )  # fmt: skip


def _prefills() -> alt.Chart:
    return (
        alt.Chart(alt.NamedData("block_prefills"))
        .mark_bar()
        .encode(
            x=alt.X("n_prefills:O", title="times a block was computed", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("n_blocks:Q", title="blocks", axis=alt.Axis(format="~s"),
                    scale=alt.Scale(type="symlog", constant=1)),
            color=alt.condition("datum.n_prefills > 1", alt.value(INPUT), alt.value(BILLED)),
            tooltip=[alt.Tooltip("n_prefills:Q", title="computed"), alt.Tooltip("n_blocks:Q", title="blocks",
                                                                                format=",d")],
        )
        .properties(height=HEIGHT)
    )  # fmt: skip


TTL: Final = Figure(
    "ttl_curve", "Hit rate by lifetime",
    "Blocks model: had every block been held this long from its last use.",
    ("ttl_curve",), _ttl,
)  # fmt: skip
CAPACITY: Final = Figure(
    "capacity_curve", "Hit rate by capacity",
    "Blocks model without lifetimes: a cache of this size per model that evicts what was used longest ago (LRU), and "
    "the most that any policy could hit (Belady).",
    ("capacity_curve",), _capacity,
)  # fmt: skip
WORKING_SET: Final = Figure(
    "working_set", "Working set over time", "Distinct blocks used within the last 1, 5, 15 and 60 minutes.",
    ("working_set",), _working_set,
)  # fmt: skip
PREFILLS: Final = Figure(
    "block_prefills", "How often blocks were computed",
    "Blocks model with the lifetime that the markers ask for. Once is the least; every further time was a loss.",
    ("block_prefills",), _prefills,
)  # fmt: skip
