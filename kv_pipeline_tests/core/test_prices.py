from __future__ import annotations

from datetime import date

import pytest

from kv_pipeline.core.prices import PRICE_COLUMNS, ModelPrices, PriceTable


def price(model="claude-opus-5", usd=1.0, **where):
    return ModelPrices(model=model, source="test", **dict.fromkeys(PRICE_COLUMNS, usd), **where)


def usd(table, *question):
    found = table.for_model(*question)
    return found and found.input_usd_per_mtok


SPRING, AUTUMN = date(2026, 3, 13), date(2026, 9, 1)
CHANGING = PriceTable(
    [
        price(usd=4, valid_from=AUTUMN),
        price(usd=2, above_prompt_tokens=100),
        price(usd=1),
        price(usd=3, valid_from=SPRING),
        price(usd=9, above_prompt_tokens=1000),
    ]
)


@pytest.mark.parametrize(
    ("on", "prompt_tokens", "expected"),
    [
        (date(2026, 3, 12), 0, 1),
        (date(2026, 3, 12), 100, 1),
        (date(2026, 3, 12), 101, 2),
        (date(2026, 3, 12), 1001, 9),
        (SPRING, 1001, 3),
        (date(2026, 8, 31), 0, 3),
        (AUTUMN, 0, 4),
        (None, 0, 4),
    ],
)
def test_price_of_day_and_length(on, prompt_tokens, expected):
    assert usd(CHANGING, "claude-opus-5-20260101", on, prompt_tokens) == expected


@pytest.mark.parametrize("model", ["claude-opus-5-1", "claude-opus", "opus", "claude-opus-5-fast", "gpt-5"])
def test_relatives_of_a_known_model_stay_unknown(model):
    assert CHANGING.for_model(model) is None


def test_no_price_before_the_first_day():
    table = PriceTable([price(valid_from=SPRING)])
    assert usd(table, "claude-opus-5", date(2026, 3, 12)) is None
    assert usd(table, "claude-opus-5", SPRING) == 1


def test_an_override_replaces_models_whole():
    ours = PriceTable([price(usd=7), price("claude-new-1", usd=8)])
    both = PriceTable([*CHANGING, price("claude-haiku-5-5", usd=5)]).overridden_by(ours)
    assert both.models == {"claude-opus-5", "claude-new-1", "claude-haiku-5-5"}
    assert usd(both, "claude-opus-5", SPRING, 1001) == 7
    assert usd(both, "claude-haiku-5-5") == 5


def test_two_prices_for_one_case_are_refused():
    with pytest.raises(ValueError, match="claude-opus-5 from 2026-03-13 above 9 prompt tokens has two prices"):
        PriceTable([price(valid_from=SPRING), *[price(valid_from=SPRING, above_prompt_tokens=9)] * 2])


def test_a_period_needs_a_price_for_short_prompts():
    with pytest.raises(ValueError, match=r"claude-opus-5 from 2026-03-13 above 9 .* no price for shorter"):
        PriceTable([price(), price(valid_from=SPRING, above_prompt_tokens=9)])
