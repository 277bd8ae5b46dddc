"""Sums and rates over requests: totals, per model, growth, times."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from kv_pipeline.core.phases import phase_summary
from kv_pipeline.reports.ratios import ratio, share

PERCENTILES: Final = (50, 90, 95, 99, 100)
_SUMS: Final = (
    "prompt_tokens", "hit_tokens", "billed_prompt_tokens", "billed_read_tokens", "billed_write_5m_tokens",
    "billed_write_1h_tokens", "billed_input_tokens", "output_tokens", "cost_usd", "cost_without_caching_usd",
    "savings_usd", "lost_tokens", "lost_usd",
)  # fmt: skip


def totals(requests: pl.DataFrame, by: list[str] | None = None) -> pl.DataFrame:
    """Sums and rates, one row a group, or one row of everything.

    Rates compare like with like: simulated, predicted and billed hit rates are of the requests that were billed.

    Args:
        requests: As `request_rows` gives.
        by: Columns to group by.

    Returns:
        n_requests, n_billed, n_agents, the sums, simulated_hit_rate, billed_hit_rate, difference_points,
        predicted_hit_rate (API model, over billed prompt tokens; null where it was not computed), n_caching and
        exact_share (of the requests that use caching, those whose read was predicted to the token).
    """
    keys = by or []
    is_billed = pl.col("billed_prompt_tokens").is_not_null()
    is_compared = is_billed & pl.col("uses_caching").fill_null(value=False)
    aggregated = [
        pl.len().cast(pl.Int64).alias("n_requests"),
        is_billed.sum().cast(pl.Int64).alias("n_billed"),
        pl.struct("conversation_id", "agent_id").n_unique().cast(pl.Int64).alias("n_agents"),
        *(pl.col(name).sum().cast(_sum_type(name)) for name in _SUMS),
        pl.col("prompt_tokens").filter(is_billed).sum().cast(pl.Int64).alias("_prompt_tokens"),
        pl.col("hit_tokens").filter(is_billed).sum().cast(pl.Int64).alias("_hit_tokens"),
        pl.col("predicted_read_tokens").filter(is_billed).sum().alias("predicted_read_tokens"),
        pl.col("predicted_read_tokens").is_not_null().any().alias("_is_explained"),
        is_compared.sum().cast(pl.Int64).alias("n_caching"),
        (is_compared & pl.col("is_exact")).sum().cast(pl.Int64).alias("n_exact"),
    ]
    sums = requests.group_by(keys, maintain_order=True).agg(aggregated) if keys else requests.select(aggregated)
    return (
        sums.with_columns(
            simulated_hit_rate=share("_hit_tokens", "_prompt_tokens"),
            billed_hit_rate=share("billed_read_tokens", "billed_prompt_tokens"),
            predicted_hit_rate=pl.when("_is_explained").then(share("predicted_read_tokens", "billed_prompt_tokens")),
            exact_share=pl.when("_is_explained").then(share("n_exact", "n_caching")),
        )
        .with_columns(
            difference_points=(pl.col("simulated_hit_rate") - pl.col("billed_hit_rate")) * 100,
            predicted_difference_points=(pl.col("predicted_hit_rate") - pl.col("billed_hit_rate")) * 100,
        )
        .drop(pl.selectors.starts_with("_"))
    )


def unpriced_models(requests: pl.DataFrame) -> list[str]:
    """Models of billed requests that no money was counted for, sorted."""
    unpriced = requests.filter(pl.col("billed_prompt_tokens").is_not_null(), pl.col("cost_usd").is_null())
    return unpriced["model"].unique().sort().to_list()


def phase_frame(requests: pl.DataFrame) -> pl.DataFrame:
    """One row per phase and sub-agent type: phase (for people), n_agents, n_requests, tokens, shared_prefix_share."""
    name = pl.concat_str(pl.col("phase").str.replace_all("_", " "), pl.col("subagent_type"), separator=": ",
                         ignore_nulls=True)  # fmt: skip
    return phase_summary(requests).with_columns(phase=name).drop("subagent_type")


def _sum_type(name: str) -> pl.DataType:
    return pl.Float64() if name.endswith("_usd") else pl.Int64()


def percentiles(values: pl.Series) -> dict[str, float]:
    """Mean and `PERCENTILES` by name (p50 …, max); zeros of nothing."""
    known = values.drop_nulls().cast(pl.Float64)
    mean = known.mean() if len(known) else 0.0
    named: dict[str, Any] = {"mean": mean}
    for percentile in PERCENTILES:
        name = "max" if percentile == 100 else f"p{percentile}"
        named[name] = known.quantile(percentile / 100, "linear") if len(known) else 0.0
    return {name: float(value or 0.0) for name, value in named.items()}


def growth_per_request(requests: pl.DataFrame) -> float:
    """Mean growth of an agent's context from request to request, in the API's tokens; 0 without a second request."""
    grown = requests["growth_tokens"].drop_nulls()
    return ratio(float(grown.sum()), grown.len())


def gaps_s(requests: pl.DataFrame) -> pl.Series:
    """Seconds between an agent's requests, from start to start."""
    order = ["conversation_id", "agent_id"]
    gap = pl.col("t_s") - pl.col("t_s").shift(1).over(order)
    return requests.select(gap.alias("gap_s"))["gap_s"].drop_nulls()
