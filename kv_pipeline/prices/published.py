"""Prices of Claude models from the data inside the genai-prices package.

Only `genai_prices.data` is read: its updater, which would download newer data, is never started. See
docs/decisions/0005-prices.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from kv_pipeline.core.models import canonical_model
from kv_pipeline.core.prices import ModelPrices, PriceTable

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

PROVIDER: Final = "anthropic"
_FIELDS: Final[Mapping[str, str]] = {
    "input_usd_per_mtok": "input_mtok",
    "write_5m_usd_per_mtok": "cache_write_mtok",
    "write_1h_usd_per_mtok": "cache_write_1h_mtok",
    "read_usd_per_mtok": "cache_read_mtok",
    "output_usd_per_mtok": "output_mtok",
}
"""Our price by the name that genai-prices has for it; `cache_write` is that of 5 minutes."""


def published_prices() -> PriceTable:
    """Prices of every Claude model whose five prices the package knows, with the days they changed.

    Models from before prompt caching have no cache prices there and are left out. So is a model whose price depends
    on the time of day, which none of Anthropic's does.
    """
    from genai_prices import __version__
    from genai_prices.data import providers

    models = next(provider for provider in providers if provider.id == PROVIDER).models
    return PriceTable(row for model in models for row in _rows(model, f"genai-prices {__version__}"))


def _rows(model: ModelInfo, source: str) -> Iterator[ModelPrices]:
    days = _first_days(model)
    for day in days:
        at = datetime.combine(day or date.min, time(), UTC)
        prices = _named(model.get_prices(at))
        if prices is None:
            return
        for above in (None, *_tier_starts(prices)):
            usd_per_mtok: dict[str, Any] = {name: float(_price_above(price, above)) for name, price in prices.items()}
            yield ModelPrices(
                model=canonical_model(model.id),
                valid_from=day,
                above_prompt_tokens=above,
                context_window_tokens=model.context_window,
                source=source,
                **usd_per_mtok,
            )


def _first_days(model: ModelInfo) -> list[date | None]:
    """Days on which the model's prices changed, None for the start; empty if they depend on something else."""
    from genai_prices.types import ModelPrice, StartDateConstraint

    if isinstance(model.prices, ModelPrice):
        return [None]
    constraints = [price.constraint for price in model.prices if price.constraint is not None]
    days = [constraint.start_date for constraint in constraints if isinstance(constraint, StartDateConstraint)]
    return [None, *sorted(set(days))] if len(days) == len(constraints) else []


def _named(price: ModelPrice) -> dict[str, Decimal | TieredPrices] | None:
    named = {ours: getattr(price, theirs) for ours, theirs in _FIELDS.items()}
    return None if None in named.values() else named


def _tier_starts(prices: Mapping[str, Decimal | TieredPrices]) -> list[int]:
    tiered = [price for price in prices.values() if not isinstance(price, Decimal)]
    return sorted({tier.start for price in tiered for tier in price.tiers})


def _price_above(price: Decimal | TieredPrices, above: int | None) -> Decimal:
    """Price of the highest tier that starts at or below a prompt length."""
    if isinstance(price, Decimal):
        return price
    reached = [tier.price for tier in price.tiers if above is not None and tier.start <= above]
    return reached[-1] if reached else price.base
