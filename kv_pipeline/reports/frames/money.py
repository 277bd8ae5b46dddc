"""What losses cost by cause, and what requests would have cost had they been sent otherwise."""

from __future__ import annotations

from typing import Final

import polars as pl

from kv_pipeline.core.causes import DESCRIPTIONS, UNAVOIDABLE, Cause
from kv_pipeline.core.money import with_costs
from kv_pipeline.core.prices import PriceTable
from kv_pipeline.core.scenarios import DESCRIPTIONS as SCENARIOS
from kv_pipeline.core.scenarios import Scenario
from kv_pipeline.reports.frames.requests import lost
from kv_pipeline.reports.ratios import share

_KINDS: Final = ("input", "read", "write_5m", "write_1h")
_MONEY: Final = {
    "input": "input_tokens", "read": "cache_read_tokens", "write_5m": "cache_write_5m_tokens",
    "write_1h": "cache_write_1h_tokens",
}  # fmt: skip


def causes(requests: pl.DataFrame) -> pl.DataFrame:
    """One row per cause that cost something, dearest first.

    Args:
        requests: As `request_rows` gives.

    Returns:
        cause (for people), cause_id, description, is_avoidable, n_requests, lost_tokens, lost_usd, lost_share (of all
        lost tokens).
    """
    known = [(cause.value, cause_name(cause.value), DESCRIPTIONS[cause], cause not in UNAVOIDABLE) for cause in Cause]
    names = pl.DataFrame(known, schema=["cause_id", "cause", "description", "is_avoidable"], orient="row")
    return (
        lost(requests)
        .group_by(cause_id="cause", maintain_order=True)
        .agg(n_requests=pl.len(), lost_tokens=pl.col("lost_tokens").sum(), lost_usd=pl.col("lost_usd").sum())
        .join(names, on="cause_id", how="left")
        .with_columns(all_tokens=pl.col("lost_tokens").sum())
        .with_columns(lost_share=share("lost_tokens", "all_tokens"))
        .select("cause", "cause_id", "description", "is_avoidable", "n_requests", "lost_tokens", "lost_usd",
                "lost_share")
        .sort("lost_tokens", "cause_id", descending=[True, False])
    )  # fmt: skip


def cause_name(cause: str) -> str:
    """A cause as people read it."""
    return cause.replace("_", " ")


def what_if(scenarios: pl.DataFrame, requests: pl.DataFrame, prices: PriceTable) -> pl.DataFrame:
    """One row per scenario, in the order of `Scenario`.

    Args:
        scenarios: WHAT_IF of the requests.
        requests: The requests, for their times.
        prices: Prices in force.

    Returns:
        scenario_id, scenario (for people), n_requests, tokens by kind, predicted_hit_rate, prompt_usd (without
        answers; of requests whose model has a price), and saved_usd and saved_share against `as_sent`.
    """
    keys = ["conversation_id", "request_index"]
    tokens = {_MONEY[kind]: f"predicted_{kind}_tokens" for kind in _KINDS}
    timed = scenarios.join(requests.select(*keys, "requested_at_utc"), on=keys).with_columns(output_tokens=pl.lit(0))
    costs = with_costs(timed.rename({old: new for new, old in tokens.items()}), prices)
    known = [(scenario.value, name, place) for place, (scenario, name) in enumerate(SCENARIOS.items())]
    order = pl.DataFrame(known, schema=["scenario_id", "scenario", "place"], orient="row")
    sums = (
        costs.group_by(scenario_id="scenario", maintain_order=True)
        .agg(pl.len().alias("n_requests"), pl.col(list(tokens)).sum(), prompt_usd=pl.col("cost_usd").sum())
        .join(order, on="scenario_id")
        .sort("place")
        .with_columns(prompt_tokens=pl.sum_horizontal(list(tokens)))
    )
    as_sent = sums.filter(pl.col("scenario_id") == Scenario.AS_SENT.value)["prompt_usd"].sum()
    return (
        sums.with_columns(
            predicted_hit_rate=share("cache_read_tokens", "prompt_tokens"),
            saved_usd=as_sent - pl.col("prompt_usd"),
            as_sent_usd=pl.lit(float(as_sent)),
        )
        .with_columns(saved_share=share("saved_usd", "as_sent_usd"))
        .drop("place", "as_sent_usd")
    )
