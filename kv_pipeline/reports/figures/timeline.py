"""The block timeline of a conversation: the picture that explains caching at a glance."""

from __future__ import annotations

from typing import Final

import altair as alt

from kv_pipeline.reports.figures.figure import (
    BILLED,
    INPUT,
    PREDICTED,
    SIMULATED,
    WRITE_5M,
    Figure,
    in_view,
    of_agent,
    requests_axis,
)

STATES: Final = {
    "cached": ("kept and cached", BILLED),
    "cached_by_others": ("cached by another request", PREDICTED),
    "kept_uncached": ("kept, but no longer cached", WRITE_5M),
    "rewritten": ("other content than before", INPUT),
    "added": ("added", SIMULATED),
    "dropped": ("dropped since the request before", "rgba(138, 148, 163, 0.3)"),
}
"""State of a range of blocks: its name for people and its colour; what is no longer there shows through."""

# Columns overlap by half a pixel: browsers would show the seams between them.
_RIGHT: Final = "datum.request_index + 0.5 + (last_request - first_request) * 0.0004"
_CASES: Final = " : ".join(f"datum.state == '{state}' ? '{label}'" for state, (label, _) in STATES.items())


def _timeline() -> alt.LayerChart:
    labels, colours = (list(part) for part in zip(*STATES.values(), strict=True))
    shown = alt.selection_point(name="series_shown", fields=["what"], bind="legend")
    rectangles = (
        in_view(of_agent(alt.Chart(alt.NamedData("rectangles"))))
        .transform_calculate(
            what=f"{_CASES} : ''", left="datum.request_index - 0.5", right=_RIGHT,
            blocks="datum.to_block - datum.from_block",
        )
        .mark_rect(strokeWidth=0)
        .encode(
            x=_edge("left"),
            x2="right:Q",
            y=alt.Y("from_block:Q", title="block of the prompt", axis=alt.Axis(format="~s")),
            y2="to_block:Q",
            color=alt.Color("what:N", title=None, scale=alt.Scale(domain=labels, range=colours),
                            legend=alt.Legend(orient="top", columns=3, symbolOpacity=1)),
            opacity=alt.condition(shown, alt.value(1), alt.value(0.12)),
            tooltip=[alt.Tooltip("request_index:Q", title="request"), alt.Tooltip("agent:N"), alt.Tooltip("what:N"),
                     alt.Tooltip("from_block:Q", title="from block", format=",d"),
                     alt.Tooltip("to_block:Q", title="to block", format=",d"),
                     alt.Tooltip("blocks:Q", format=",d")],
        )
        .add_params(shown)
    )  # fmt: skip
    return (rectangles + _section_ends()).properties(height=380)


def _section_ends() -> alt.Chart:
    """Where tools and system end: a change below a line costs everything above it."""
    ends = alt.Chart(alt.NamedData("requests")).transform_fold(
        ["tools_end_block", "system_end_block"], as_=["section", "end_block"]
    )
    return (
        in_view(of_agent(ends))
        .transform_calculate(left="datum.request_index - 0.5", right=_RIGHT)
        .mark_rule(color="white", opacity=0.8, strokeWidth=1, tooltip=None)
        .encode(x=_edge("left"), x2="right:Q", y="end_block:Q")
    )


def _edge(field: str) -> alt.X:
    axis = requests_axis()
    axis.shorthand = f"{field}:Q"
    return axis


TIMELINE: Final = Figure(
    "block_timeline", "Block timeline",
    "A column per request, the prompt from bottom to top in blocks of tokens. Compared with the agent's request "
    "before, a block was kept, changed, added or dropped; whether it was still cached is the blocks model's "
    "answer, scope conversation. All that is not green or purple had to be computed anew. "
    "White lines: the ends of tools and system.",
    ("rectangles", "requests"), _timeline, is_linked=True, is_wide=True,
)  # fmt: skip
