from __future__ import annotations

from datetime import date
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.money import cache_metrics, cost_sums, unknown_models, with_costs, with_prices
from kv_pipeline.core.prices import PRICE_COLUMNS, ModelPrices, PriceTable
from kv_pipeline_tests.factories import at

UNKNOWN = "claude-opus-9"
DAY_S = 86_400
TOKENS = ("input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens", "output_tokens")


def prices_of(model, *usd, **where):
    return ModelPrices(model=model, source="test", **dict(zip(PRICE_COLUMNS, usd, strict=True)), **where)


FIRST_DAY = at(0).date()
CHANGE = date.fromordinal(FIRST_DAY.toordinal() + 2)
TABLE = PriceTable(
    [
        prices_of("claude-opus-5", 5, 6.25, 10, 0.5, 25),
        prices_of("claude-haiku-5-5", 0.1, 0.125, 0.2, 0.01, 0.5),
        prices_of("claude-haiku-5-5", 0.5, 0.625, 1, 0.05, 2.5, above_prompt_tokens=100),
        prices_of("claude-sonnet-4-6", 3, 3.75, 6, 0.3, 15),
        prices_of("claude-sonnet-4-6", 6, 7.5, 12, 0.6, 22.5, above_prompt_tokens=200),
        prices_of("claude-sonnet-4-6", 2, 2.5, 4, 0.2, 10, valid_from=CHANGE),
        prices_of("claude-late-1", 1, 1.25, 2, 0.1, 5, valid_from=CHANGE),
    ]
)
MODELS = ["claude-opus-5", "us.anthropic.claude-haiku-5-5-20261001-v1:0", "claude-sonnet-4-6[1m]", "claude-late-1",
          UNKNOWN]  # fmt: skip


def frame_of(rows):
    """Requests of (model, seconds, the five token counts)."""
    models, seconds, *tokens = zip(*rows, strict=True) if rows else [()] * 7
    return pl.DataFrame(
        {
            "model": pl.Series(models, dtype=pl.String),
            "requested_at_utc": pl.Series([at(s) for s in seconds], dtype=pl.Datetime("us", "UTC")),
            **{name: pl.Series(c, dtype=pl.Int64) for name, c in zip(TOKENS, tokens, strict=True)},
        }
    )


def request_of(model="claude-opus-5", seconds=0, uncached=0, write_5m=0, write_1h=0, read=0, output=0):
    return (model, seconds, uncached, write_5m, write_1h, read, output)


def oracle(row):
    """(cost, without caching, savings, loss a token) of one request by hand, in exact decimals."""
    model, seconds, *tokens = row
    prompt = sum(tokens[:4])
    prices = TABLE.for_model(model, at(seconds).date(), prompt)
    if prices is None:
        return (None,) * 4
    usd = [Decimal(str(getattr(prices, name))) / 1_000_000 for name in PRICE_COLUMNS]
    cost = sum(n * p for n, p in zip(tokens, usd, strict=True))
    without = prompt * usd[0] + tokens[4] * usd[4]
    n_unread = sum(tokens[:3])
    unread = sum(n * p for n, p in zip(tokens[:3], usd[:3], strict=True)) / n_unread if n_unread else usd[0]
    return cost, without, without - cost, unread - usd[3]


requests_of = st.lists(
    st.tuples(
        st.sampled_from(MODELS),
        st.integers(0, 5 * DAY_S),
        *[st.sampled_from([0, 0, 1, 24, 25, 50, 51, 100, 101, 10**6]) for _ in TOKENS],
    ),
    max_size=12,
)


@settings(max_examples=200)
@given(requests_of)
def test_costs_are_those_computed_by_hand(rows):
    found = with_costs(frame_of(rows), TABLE)
    columns = ["cost_usd", "cost_without_caching_usd", "savings_usd", "loss_usd_per_token"]
    for values, row in zip(found.select(columns).rows(), rows, strict=True):
        assert values == tuple(v if v is None else pytest.approx(float(v), rel=1e-9, abs=1e-12) for v in oracle(row))
    assert found.select(frame_of(rows).columns).equals(frame_of(rows))


@pytest.mark.parametrize(("prompt_tokens", "usd_per_mtok"), [(0, 0.1), (100, 0.1), (101, 0.5)])
def test_a_long_prompt_costs_more_from_its_first_token_on(prompt_tokens, usd_per_mtok):
    found = with_prices(frame_of([request_of("claude-haiku-5-5", read=prompt_tokens)]), TABLE)
    assert found["input_usd_per_mtok"].to_list() == [usd_per_mtok]


@pytest.mark.parametrize(("seconds", "usd_per_mtok"), [(2 * DAY_S - 1, 3), (2 * DAY_S, 2)])
def test_prices_of_the_day(seconds, usd_per_mtok):
    midnight = at(0).replace(hour=0, minute=0, second=0, microsecond=0)
    offset_s = (midnight - at(0)).total_seconds()
    found = with_prices(frame_of([request_of("claude-sonnet-4-6", seconds + offset_s)]), TABLE)
    assert found["input_usd_per_mtok"].to_list() == [usd_per_mtok]


def test_caching_can_cost_more_than_it_saves():
    found = with_costs(frame_of([request_of(write_1h=1_000_000)]), TABLE)
    assert found["savings_usd"].to_list() == [-5.0]


def test_no_usage_no_cost():
    found = with_costs(frame_of([("claude-opus-5", 0, None, None, None, None, None)]), TABLE)
    assert found["cost_usd"].to_list() == [None]
    assert unknown_models(found).height == 0


def test_unknown_models_are_named_with_what_is_left_out():
    costs = with_costs(
        frame_of([request_of(UNKNOWN, uncached=3, read=4, output=5), request_of(UNKNOWN), request_of(uncached=9)]),
        TABLE,
    )
    assert unknown_models(costs).rows() == [(UNKNOWN, 2, 7, 5)]
    assert cost_sums(costs).select("n_requests", "n_unpriced_requests").rows() == [(3, 2)]


@given(requests_of)
def test_sums_of_groups_are_the_total(rows):
    costs = with_costs(frame_of(rows), TABLE)
    groups, total = cost_sums(costs, ["model"]), cost_sums(costs)
    assert groups["model"].to_list() == sorted(set(costs["model"]))
    for name in groups.columns[1:]:
        assert groups[name].sum() == pytest.approx(total[name].item())


def metrics_by_hand(rows):
    hit, write = sum(row[5] or 0 for row in rows), sum((row[3] or 0) + (row[4] or 0) for row in rows)
    miss = sum(row[2] or 0 for row in rows) + write
    return hit, miss, write, hit + miss, pytest.approx(hit / (hit + miss)) if hit + miss else 0.0


METRICS = ["hit_tokens", "miss_tokens", "write_tokens", "prompt_tokens", "hit_ratio"]


@given(requests_of)
def test_cache_metrics(rows):
    frame = frame_of(rows)
    assert cache_metrics(frame, []).rows() == [metrics_by_hand(rows)]
    assert cache_metrics(frame).select(METRICS).rows() == [metrics_by_hand([row]) for row in rows]
    by_model = {model: [row for row in rows if row[0] == model] for model in sorted({row[0] for row in rows})}
    assert cache_metrics(frame, ["model"]).rows() == [(m, *metrics_by_hand(group)) for m, group in by_model.items()]


@pytest.mark.parametrize("tokens", [0, None])
def test_nothing_is_zero_and_never_nan(tokens):
    frame = frame_of([("m", 0, *[tokens] * 5)])
    assert cache_metrics(frame).select(METRICS).rows() == [(0, 0, 0, 0, 0.0)]
    assert cache_metrics(frame, ["model"]).rows() == [("m", 0, 0, 0, 0, 0.0)]
