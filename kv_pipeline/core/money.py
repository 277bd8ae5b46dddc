"""What requests cost, what they would have cost without a cache, and what a lost token costs. Cache metrics.

With the prices p of a request's model, day and prompt length, and `prompt` = input + read + written tokens:

    cost                 = input x p.input + written 5m x p.write_5m + written 1h x p.write_1h + read x p.read
                           + output x p.output
    cost without caching = prompt x p.input + output x p.output
    savings              = cost without caching - cost; negative if written tokens were not read often enough
    loss per token       = (input x p.input + written 5m x p.write_5m + written 1h x p.write_1h)
                           / (input + written 5m + written 1h) - p.read

A lost token, one that could have been read, was billed like the request's other tokens that were not read: hence their
mean price less the price of reading. If a request read everything, an uncached token's price less that of reading.
Source: platform.claude.com, "Prompt caching", sections "Pricing" and "Tracking cache performance".
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Final

import polars as pl

from kv_pipeline.core.models import canonical_model
from kv_pipeline.core.prices import PRICE_COLUMNS, PriceTable, lower_bound_tokens

TOKENS_BY_PRICE: Final = dict(
    zip(
        PRICE_COLUMNS,
        ("input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens", "output_tokens"),
        strict=True,
    )
)
"""Billed tokens of a request by the price they cost."""
MONEY_COLUMNS: Final = ("cost_usd", "cost_without_caching_usd", "savings_usd")

_UNREAD: Final = PRICE_COLUMNS[:3]
_PROMPT: Final = PRICE_COLUMNS[:4]
_READ, _INPUT, _OUTPUT = "read_usd_per_mtok", "input_usd_per_mtok", "output_usd_per_mtok"
_UTC_TIME: Final = pl.Datetime("us", "UTC")
_TIER_KEYS: Final = ("period_index", "above_prompt_tokens")


def with_costs(requests: pl.DataFrame, prices: PriceTable) -> pl.DataFrame:
    """Requests with what they cost.

    Args:
        requests: One row a request: model, requested_at_utc, input_tokens, cache_read_tokens, cache_write_5m_tokens,
            cache_write_1h_tokens, output_tokens; tokens null where the answer has no usage.
        prices: Prices in force.

    Returns:
        The same rows in the same order with the prices of `with_prices`, and in dollars cost_usd,
        cost_without_caching_usd, savings_usd and loss_usd_per_token: all null where the model has no price or the
        request no usage.
    """
    cost_usd = _cost_usd(PRICE_COLUMNS)
    without_usd = (_prompt_tokens() * pl.col(_INPUT) + _tokens("output_tokens") * pl.col(_OUTPUT)) / 1e6
    return with_prices(requests, prices).with_columns(
        cost_usd=cost_usd,
        cost_without_caching_usd=without_usd,
        savings_usd=without_usd - cost_usd,
        loss_usd_per_token=_unread_usd_per_token() - pl.col(_READ) / 1e6,
    )


def with_prices(requests: pl.DataFrame, prices: PriceTable) -> pl.DataFrame:
    """Requests with the columns of `PRICE_COLUMNS`, null where the model has no price on that day.

    A request costs the prices of its day (UTC) and of its whole prompt's length.
    """
    periods, tiers = _price_frames(prices)
    names = requests["model"].unique().drop_nulls().to_list()
    canonical = pl.col("model").replace_strict(
        names, [canonical_model(name) for name in names], default=None, return_dtype=pl.String
    )
    on_row, by_time, by_length = "_row", "_requested_at_utc", "_prompt_tokens"
    keyed = requests.with_row_index(on_row).select(
        on_row,
        _model=canonical,
        _requested_at_utc=pl.col("requested_at_utc").cast(_UTC_TIME),
        _prompt_tokens=_prompt_tokens().fill_null(0),
    )
    in_period = keyed.sort(by_time).join_asof(
        periods, left_on=by_time, right_on="valid_from_utc", by_left="_model", by_right="model", check_sortedness=False
    )
    found = in_period.sort(by_length).join_asof(
        tiers, left_on=by_length, right_on="above_prompt_tokens", by="period_index", check_sortedness=False,
        allow_exact_matches=False,
    )  # fmt: skip
    return requests.hstack(found.sort(on_row).select(PRICE_COLUMNS))


def _price_frames(prices: PriceTable) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Periods (model, valid_from_utc, period_index) by time, and the tiers of each by prompt length."""
    rows = list(prices)
    starts = [datetime.combine(row.valid_from or date.min, time(), UTC) for row in rows]
    frame = pl.DataFrame(
        {
            "model": pl.Series([row.model for row in rows], dtype=pl.String),
            "valid_from_utc": pl.Series(starts, dtype=_UTC_TIME),
            "above_prompt_tokens": pl.Series([lower_bound_tokens(row) for row in rows], dtype=pl.Int64),
            **{name: pl.Series([getattr(row, name) for row in rows], dtype=pl.Float64) for name in PRICE_COLUMNS},
        }
    ).with_columns(period_index=pl.struct("model", "valid_from_utc").rank("dense").cast(pl.UInt32))
    periods = frame.select("model", "valid_from_utc", "period_index").unique().sort("valid_from_utc")
    return periods, frame.select(*_TIER_KEYS, *PRICE_COLUMNS).sort("above_prompt_tokens")


def _tokens(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Int64)


def _sum(terms: Sequence[pl.Expr]) -> pl.Expr:
    return pl.sum_horizontal(*terms, ignore_nulls=False)


def _prompt_tokens() -> pl.Expr:
    return _sum([_tokens(TOKENS_BY_PRICE[price]) for price in _PROMPT])


def _cost_usd(prices: Sequence[str]) -> pl.Expr:
    return _sum([_tokens(TOKENS_BY_PRICE[price]) * pl.col(price) for price in prices]) / 1e6


def _unread_usd_per_token() -> pl.Expr:
    unread_tokens = _sum([_tokens(TOKENS_BY_PRICE[price]) for price in _UNREAD])
    return pl.when(unread_tokens == 0).then(pl.col(_INPUT) / 1e6).otherwise(_cost_usd(_UNREAD) / unread_tokens)


def cost_sums(costs: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Sums of money over any grouping.

    Args:
        costs: As `with_costs` gives.
        by: Columns to group by; without any, one row for everything.

    Returns:
        One row a group, sorted by it: n_requests, n_unpriced_requests (no price or no usage; they count as 0 dollars),
        cost_usd, cost_without_caching_usd, savings_usd.
    """
    return _grouped(
        costs,
        by,
        [
            pl.len().cast(pl.UInt32).alias("n_requests"),
            pl.col("cost_usd").is_null().sum().cast(pl.UInt32).alias("n_unpriced_requests"),
            *(pl.col(name).sum() for name in MONEY_COLUMNS),
        ],
    )


def unknown_models(costs: pl.DataFrame) -> pl.DataFrame:
    """Models that have no price, so that nobody takes a sum for more than it is.

    Args:
        costs: As `with_costs` gives.

    Returns:
        One row per model as requests name it: n_requests, prompt_tokens, output_tokens left out of every sum.
    """
    return _grouped(
        costs.filter(pl.col(_INPUT).is_null()),
        ["model"],
        [
            pl.len().cast(pl.UInt32).alias("n_requests"),
            _prompt_tokens().sum().alias("prompt_tokens"),
            _tokens("output_tokens").sum().alias("output_tokens"),
        ],
    )


def cache_metrics(requests: pl.DataFrame, by: Sequence[str] | None = None) -> pl.DataFrame:
    """Cache use in tokens, per request or over any grouping.

    Args:
        requests: One row a request: input_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens.
            Null counts as 0.
        by: Columns to group by, none for one row of totals; None for one row a request, in the same order.

    Returns:
        The columns of `by`, or all of a request's, and hit_tokens (read), miss_tokens (not read: written or not),
        write_tokens, prompt_tokens (hit + miss) and hit_ratio (hit / prompt, 0 to 1, and 0 for an empty prompt).
    """
    hit, uncached, write_5m, write_1h = (
        _tokens(name).fill_null(0)
        for name in ("cache_read_tokens", "input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    )
    write = write_5m + write_1h
    tokens = [
        hit.alias("hit_tokens"),
        (uncached + write).alias("miss_tokens"),
        write.alias("write_tokens"),
        (hit + uncached + write).alias("prompt_tokens"),
    ]
    counted = requests.with_columns(tokens) if by is None else _grouped(requests, by, [term.sum() for term in tokens])
    share = pl.col("hit_tokens") / pl.col("prompt_tokens")
    return counted.with_columns(hit_ratio=pl.when(pl.col("prompt_tokens") == 0).then(0.0).otherwise(share))


def _grouped(frame: pl.DataFrame, by: Sequence[str], sums: Sequence[pl.Expr]) -> pl.DataFrame:
    return frame.group_by(by).agg(sums).sort(by) if by else frame.select(sums)
