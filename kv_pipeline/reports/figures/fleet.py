"""Figures over conversations and causes: rates predicted and billed, losses, what-if."""

from __future__ import annotations

from typing import Final

import altair as alt

from kv_pipeline.reports.figures.figure import BILLED, INPUT, NEUTRAL, SIMULATED, WRITE_5M, Figure

_STEP: Final = alt.Step(20)
_RATE: Final = alt.Axis(format="%")


def _conversations() -> alt.LayerChart:
    agreement = (
        alt.Chart(alt.InlineData(values=[{"difference_points": 0}]))
        .mark_rule(color=NEUTRAL, strokeDash=[3, 3])
        .encode(y="difference_points:Q")
    )
    points = (
        alt.Chart(alt.NamedData("conversations"))
        .transform_filter("datum.n_billed > 0")
        .mark_circle(opacity=0.75, cursor="pointer")
        .encode(
            x=alt.X("billed_hit_rate:Q", title="billed hit rate", axis=_RATE, scale=alt.Scale(zero=False, padding=20)),
            y=alt.Y("difference_points:Q", title="simulated less billed, points", scale=alt.Scale(padding=20)),
            size=alt.Size("prompt_tokens:Q", title="tokens",
                          legend=alt.Legend(format="~s", tickCount=3, symbolFillColor=NEUTRAL)),
            color=alt.Color("user_id:N", title="user"),
            href="href:N",
            tooltip=[alt.Tooltip("conversation_id:N", title="conversation"),
                     alt.Tooltip("n_requests:Q", title="requests", format=",d"),
                     alt.Tooltip("simulated_hit_rate:Q", title="simulated", format=".2%"),
                     alt.Tooltip("billed_hit_rate:Q", title="billed", format=".2%"),
                     alt.Tooltip("difference_points:Q", title="difference, points", format="+.2f")],
        )
    )  # fmt: skip
    return (agreement + points).properties(height=300)


def _causes(measure: str, title: str, tick_format: str, format_: str) -> alt.Chart:
    return (
        alt.Chart(alt.NamedData("causes"))
        .transform_filter(f"datum.{measure} > 0")
        .mark_bar()
        .encode(
            x=alt.X(f"{measure}:Q", title=title, axis=alt.Axis(format=tick_format)),
            y=alt.Y("cause:N", title=None, sort=alt.EncodingSortField(measure, order="descending")),
            color=alt.condition("datum.is_avoidable", alt.value(INPUT), alt.value(NEUTRAL)),
            tooltip=[alt.Tooltip("cause:N"), alt.Tooltip("description:N", title="means"),
                     alt.Tooltip("n_requests:Q", title="requests", format=",d"),
                     alt.Tooltip(f"{measure}:Q", title=title, format=format_)],
        )
        .properties(height=_STEP)
    )  # fmt: skip


def _causes_tokens() -> alt.Chart:
    return _causes("lost_tokens", "lost tokens", "~s", ",d")


def _causes_usd() -> alt.Chart:
    return _causes("lost_usd", "lost dollars", "$,.4~f", "$,.4f")


def _models() -> alt.Chart:
    sides = {"simulated_hit_rate": "blocks model", "billed_hit_rate": "billed"}
    names = " : ".join(f"datum.column == '{column}' ? '{label}'" for column, label in sides.items())
    return (
        alt.Chart(alt.NamedData("model_rates"))
        .transform_fold(list(sides), as_=["column", "hit_rate"])
        .transform_calculate(side=f"{names} : ''")
        .mark_bar()
        .encode(
            x=alt.X("hit_rate:Q", title="hit rate", axis=_RATE, scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("model:N", title=None),
            yOffset=alt.YOffset("side:N", sort=list(sides.values())),
            color=alt.Color("side:N", title=None, legend=alt.Legend(orient="top"),
                            scale=alt.Scale(domain=list(sides.values()), range=[SIMULATED, BILLED])),
            tooltip=[alt.Tooltip("model:N"), alt.Tooltip("side:N"),
                     alt.Tooltip("hit_rate:Q", title="hit rate", format=".2%"),
                     alt.Tooltip("n_requests:Q", title="requests", format=",d")],
        )
        .properties(height=alt.Step(14))
    )  # fmt: skip


def _what_if() -> alt.Chart:
    return (
        alt.Chart(alt.NamedData("what_if"))
        .transform_filter("isValid(datum.prompt_usd)")
        .mark_bar()
        .encode(
            x=alt.X("prompt_usd:Q", title="predicted cost of the prompts, dollars", axis=alt.Axis(format="$,.4~f")),
            y=alt.Y("scenario:N", title=None, sort=None),
            color=alt.condition("datum.scenario_id == 'as_sent'", alt.value(NEUTRAL), alt.value(WRITE_5M)),
            tooltip=[alt.Tooltip("scenario:N"), alt.Tooltip("prompt_usd:Q", title="cost", format="$,.4f"),
                     alt.Tooltip("saved_usd:Q", title="saved against as sent", format="$,.4f"),
                     alt.Tooltip("predicted_hit_rate:Q", title="hit rate", format=".2%")],
        )
        .properties(height=_STEP)
    )  # fmt: skip


CONVERSATIONS: Final = Figure(
    "conversations", "Simulated against billed, by conversation",
    "A circle per conversation: blocks model, scope conversation, with the lifetime that its markers ask for, against "
    "the bill. On the dashed line they agree. Click a circle for its page.",
    ("conversations",), _conversations,
)  # fmt: skip
MODELS: Final = Figure(
    "model_rates", "Hit rate by model", "Blocks model, scope conversation, marked lifetime, against the bill.",
    ("model_rates",), _models,
)  # fmt: skip
CAUSES_TOKENS: Final = Figure(
    "causes_tokens", "Causes of loss, in tokens",
    "Tokens that the request before had left in the cache and that were not read. Red: something could be done.",
    ("causes",), _causes_tokens, needs="lost_tokens",
)  # fmt: skip
CAUSES_USD: Final = Figure(
    "causes_usd", "Causes of loss, in dollars", "What the lost tokens cost more than reading them would have.",
    ("causes",), _causes_usd, needs="lost_usd",
)  # fmt: skip
WHAT_IF: Final = Figure(
    "what_if", "What if", "Predicted cost of all prompts, had they been sent otherwise (API model).",
    ("what_if",), _what_if, is_wide=True, needs="prompt_usd",
)  # fmt: skip
