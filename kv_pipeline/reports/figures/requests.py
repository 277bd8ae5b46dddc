"""Figures over the requests of a conversation: hit rates, tokens, context, times, losses, agents."""

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
    WRITE_1H,
    WRITE_5M,
    Figure,
    in_view,
    of_agent,
    requests_axis,
)

_REQUESTS: Final = "requests"
_TOKENS: Final = ",.0f"
_WHO: Final = [alt.Tooltip("request_index:Q", title="request"), alt.Tooltip("agent:N", title="agent")]
_RATES: Final = {
    "simulated_hit_rate": ("simulated, blocks model", SIMULATED),
    "predicted_hit_rate": ("predicted, API model", PREDICTED),
    "billed_hit_rate": ("billed", BILLED),
}
_KINDS: Final = {
    "billed_read_tokens": ("cache read", BILLED),
    "billed_write_5m_tokens": ("cache write, 5 minutes", WRITE_5M),
    "billed_write_1h_tokens": ("cache write, 1 hour", WRITE_1H),
    "billed_input_tokens": ("uncached input", INPUT),
}


def _named(series: dict[str, tuple[str, str]], field: str) -> str:
    """An expression that gives the series of a folded column its name for people."""
    cases = " : ".join(f"datum.{field} == '{column}' ? '{label}'" for column, (label, _) in series.items())
    return f"{cases} : ''"


def _colours(series: dict[str, tuple[str, str]]) -> alt.Scale:
    labels, colours = zip(*series.values(), strict=True)
    return alt.Scale(domain=list(labels), range=list(colours))


def _hit_rate() -> alt.Chart:
    shown = alt.selection_point(name="series_shown", fields=["series"], bind="legend")
    lines = (
        in_view(of_agent(alt.Chart(alt.NamedData(_REQUESTS))))
        .transform_fold(list(_RATES), as_=["column", "hit_rate"])
        .transform_filter("isValid(datum.hit_rate)")
        .transform_calculate(series=_named(_RATES, "column"))
        .mark_line(point=alt.OverlayMarkDef(size=14), strokeWidth=1.4)
        .encode(
            x=requests_axis(),
            y=alt.Y("hit_rate:Q", title="hit rate", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("series:N", title=None, scale=_colours(_RATES), legend=alt.Legend(orient="top")),
            detail="agent_id:N",
            opacity=alt.condition(shown, alt.value(0.9), alt.value(0.06)),
            tooltip=[*_WHO, alt.Tooltip("series:N"), alt.Tooltip("hit_rate:Q", title="hit rate", format=".2%")],
        )
        .add_params(shown)
    )
    return lines.properties(height=HEIGHT)


def _cumulative_tokens() -> alt.Chart:
    shown = alt.selection_point(name="series_shown", fields=["kind"], bind="legend")
    totals = (
        of_agent(alt.Chart(alt.NamedData(_REQUESTS)))
        .transform_fold(list(_KINDS), as_=["column", "tokens"])
        .transform_filter("isValid(datum.tokens)")
        .transform_calculate(kind=_named(_KINDS, "column"))
        .transform_window(
            cumulative_tokens="sum(tokens)", groupby=["kind"], sort=[alt.SortField("request_index")], frame=[None, 0]
        )
    )
    areas = (
        in_view(totals)
        .mark_area(line=False)
        .encode(
            x=requests_axis(),
            y=alt.Y("cumulative_tokens:Q", title="tokens so far", axis=alt.Axis(format="~s"), stack="zero"),
            color=alt.Color("kind:N", title=None, scale=_colours(_KINDS), legend=alt.Legend(orient="top", columns=2)),
            opacity=alt.condition(shown, alt.value(0.85), alt.value(0.08)),
            tooltip=[*_WHO, alt.Tooltip("kind:N"), alt.Tooltip("tokens:Q", format=_TOKENS),
                     alt.Tooltip("cumulative_tokens:Q", title="so far", format=_TOKENS)],
        )
        .add_params(shown)
    )  # fmt: skip
    return areas.properties(height=HEIGHT)


def _context() -> alt.LayerChart:
    data = in_view(of_agent(alt.Chart(alt.NamedData(_REQUESTS))))
    agent = alt.Color("agent:N", title=None, legend=None)
    length = data.mark_line(point=alt.OverlayMarkDef(size=14), strokeWidth=1.4).encode(
        x=requests_axis(),
        y=alt.Y("context_tokens:Q", title="prompt tokens", axis=alt.Axis(format="~s")),
        color=agent,
        tooltip=[*_WHO, alt.Tooltip("context_tokens:Q", title="prompt tokens", format=_TOKENS),
                 alt.Tooltip("context_share:Q", title="of the window", format=".1%"),
                 alt.Tooltip("growth_tokens:Q", title="growth", format="+,.0f"),
                 alt.Tooltip("model:N")],
    )  # fmt: skip
    compacted = (
        data.transform_filter("datum.is_after_compaction")
        .mark_rule(color=INPUT, strokeDash=[4, 3])
        .encode(x=requests_axis(), tooltip=[*_WHO, alt.Tooltip("growth_tokens:Q", title="growth by compaction")])
    )
    return (length + compacted).properties(height=HEIGHT)


def _growth() -> alt.Chart:
    bars = (
        in_view(of_agent(alt.Chart(alt.NamedData(_REQUESTS))))
        .transform_filter("isValid(datum.growth_tokens)")
        .mark_bar(size=3)
        .encode(
            x=requests_axis(),
            y=alt.Y("growth_tokens:Q", title="tokens more than before", axis=alt.Axis(format="~s")),
            color=alt.condition("datum.growth_tokens < 0", alt.value(INPUT), alt.value(SIMULATED)),
            tooltip=[*_WHO, alt.Tooltip("growth_tokens:Q", title="growth", format="+,.0f")],
        )
    )
    return bars.properties(height=HEIGHT)


_DURATION: Final = (
    "datum.value >= 3600 ? datum.value / 3600 + ' h' : datum.value >= 60 ? datum.value / 60 + ' min' : "
    "datum.value + ' s'"
)
_TIMES: Final = {
    "think_time_s": ("think time", NEUTRAL),
    "api_time_s": ("API time", SIMULATED),
    "ttft_s": ("time to first token", WRITE_5M),
}


def _times() -> alt.LayerChart:
    points = (
        in_view(of_agent(alt.Chart(alt.NamedData(_REQUESTS))))
        .transform_fold(list(_TIMES), as_=["column", "seconds"])
        .transform_filter("isValid(datum.seconds)")
        .transform_calculate(what=_named(_TIMES, "column"))
        .mark_point(filled=True, size=22, opacity=0.75)
        .encode(
            x=requests_axis(),
            y=alt.Y("seconds:Q", title="seconds", scale=alt.Scale(type="symlog", constant=0.1),
                    axis=alt.Axis(values=[0, 1, 10, 60, 300, 3600, 86400], labelExpr=_DURATION)),
            color=alt.Color("what:N", title=None, scale=_colours(_TIMES), legend=alt.Legend(orient="top")),
            tooltip=[*_WHO, alt.Tooltip("what:N", title="time"), alt.Tooltip("seconds:Q", format=",.2f")],
        )
    )  # fmt: skip
    limits = (
        alt.Chart(alt.InlineData(values=[{"seconds": 300}, {"seconds": 3600}]))
        .mark_rule(strokeDash=[2, 4], color=NEUTRAL, opacity=0.7)
        .encode(y="seconds:Q")
    )
    return (limits + points).properties(height=HEIGHT)


def _losses() -> alt.Chart:
    bars = (
        in_view(of_agent(alt.Chart(alt.NamedData(_REQUESTS))))
        .transform_filter("datum.lost_tokens > 0")
        .mark_bar(size=4)
        .encode(
            x=requests_axis(),
            y=alt.Y("lost_tokens:Q", title="lost tokens", axis=alt.Axis(format="~s")),
            color=alt.Color("cause:N", title=None, scale=alt.Scale(scheme="tableau20"),
                            legend=alt.Legend(orient="top", columns=3)),
            tooltip=[*_WHO, alt.Tooltip("cause:N"), alt.Tooltip("lost_tokens:Q", title="lost tokens", format=_TOKENS),
                     alt.Tooltip("lost_usd:Q", title="lost dollars", format="$,.4f"),
                     alt.Tooltip("gap_s:Q", title="gap, s", format=",.1f")],
        )
    )  # fmt: skip
    return bars.properties(height=HEIGHT)


def _agents() -> alt.Chart:
    return (
        alt.Chart(alt.NamedData(_REQUESTS))
        .transform_calculate(end_s="datum.t_s + (isValid(datum.api_time_s) ? datum.api_time_s : 0)")
        .mark_bar(height=10, stroke=NEUTRAL, strokeWidth=0.4, cornerRadius=1)
        .encode(
            x=alt.X("t_s:Q", title="seconds since the first request", axis=alt.Axis(format="~s")),
            x2="end_s:Q",
            y=alt.Y("agent:N", title=None, sort=alt.EncodingSortField("t_s", op="min")),
            color=alt.Color("billed_hit_rate:Q", title="billed hit rate", legend=alt.Legend(format="%", orient="top"),
                            scale=alt.Scale(domain=[0, 0.5, 1], range=[INPUT, WRITE_5M, BILLED])),
            tooltip=[*_WHO, alt.Tooltip("t_s:Q", title="starts, s", format=",.1f"),
                     alt.Tooltip("api_time_s:Q", title="takes, s", format=",.2f"),
                     alt.Tooltip("prompt_tokens:Q", title="prompt tokens", format=_TOKENS),
                     alt.Tooltip("billed_hit_rate:Q", title="billed hit rate", format=".1%")],
        )
        .properties(height=alt.Step(18))
    )  # fmt: skip


HIT_RATE: Final = Figure(
    "hit_rate", "Hit rate over requests",
    "Hit rate = cache read / (input + cache read + cache write), over tokens. Simulated: blocks model over counted "
    "tokens, scope conversation, with the lifetime that the markers ask for.",
    (_REQUESTS,), _hit_rate, is_linked=True,
)  # fmt: skip
CUMULATIVE: Final = Figure(
    "cumulative_tokens", "Billed tokens by kind, so far", "As the API billed them. Click a kind to single it out.",
    (_REQUESTS,), _cumulative_tokens, is_linked=True, needs="billed_prompt_tokens",
)  # fmt: skip
CONTEXT: Final = Figure(
    "context", "Context length",
    "Prompt tokens as the API counts them; a line per agent. Dashed: the context was compacted just before.",
    (_REQUESTS,), _context, is_linked=True,
)  # fmt: skip
GROWTH: Final = Figure(
    "growth", "Context growth", "Prompt tokens more (or less) than in the agent's request before.",
    (_REQUESTS,), _growth, is_linked=True,
)  # fmt: skip
TIMES: Final = Figure(
    "times", "Think time and API time",
    "Think time: from the agent's answer before to the request. The dotted lines are 5 minutes and 1 hour.",
    (_REQUESTS,), _times, is_linked=True, is_wide=True,
)  # fmt: skip
LOSSES: Final = Figure(
    "losses", "Lost tokens over requests", "Tokens that the request before had cached and that were not read.",
    (_REQUESTS,), _losses, is_linked=True, is_wide=True, needs="lost_tokens",
)  # fmt: skip
AGENTS: Final = Figure(
    "agents", "Agents over time", "A bar per request, from its start to the end of its answer.",
    (_REQUESTS,), _agents, is_wide=True,
)  # fmt: skip
