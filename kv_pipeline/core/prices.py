"""Prices of models, by day and prompt length, from whatever list they were read.

Prices are dollars per million tokens (`_usd_per_mtok`). They are the standard ones: requests do not record batch
processing, fast mode or a region, whose prices differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final

from kv_pipeline.core.models import canonical_model

PRICE_COLUMNS: Final = (
    "input_usd_per_mtok",
    "write_5m_usd_per_mtok",
    "write_1h_usd_per_mtok",
    "read_usd_per_mtok",
    "output_usd_per_mtok",
)
"""Prices that a request is billed by, one for each kind of token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrices:
    """What one model costs from a day on, for prompts longer than some length.

    Attributes:
        model: As `canonical_model` names it.
        input_usd_per_mtok: Prompt tokens neither read from nor written to the cache.
        write_5m_usd_per_mtok: Prompt tokens written for 5 minutes.
        write_1h_usd_per_mtok: Prompt tokens written for 1 hour.
        read_usd_per_mtok: Prompt tokens read from the cache.
        output_usd_per_mtok: Tokens of the answer, thinking included.
        valid_from: First day (UTC) of these prices; None if they held from the start.
        above_prompt_tokens: All tokens of a request cost this if its prompt is longer; None for the lowest tier.
        context_window_tokens: Largest prompt and answer together, None if the source does not say.
        source: Where the prices are from.
        source_date: When that was current; None if the source does not say.
    """

    model: str
    input_usd_per_mtok: float
    write_5m_usd_per_mtok: float
    write_1h_usd_per_mtok: float
    read_usd_per_mtok: float
    output_usd_per_mtok: float
    valid_from: date | None = None
    above_prompt_tokens: int | None = None
    context_window_tokens: int | None = None
    source: str
    source_date: date | None = None


class PriceTable:
    """Prices of several models.

    Args:
        rows: In any order; names are made canonical by whoever read them.

    Raises:
        ValueError: Two rows of a model hold for the same day and prompt length, or a period lacks its lowest tier.
    """

    def __init__(self, rows: Iterable[ModelPrices]) -> None:
        self.rows: Final = tuple(sorted(rows, key=_place))
        _check_places(self.rows)

    def __iter__(self) -> Iterator[ModelPrices]:
        return iter(self.rows)

    @property
    def models(self) -> frozenset[str]:
        """Canonical names of the models that have prices."""
        return frozenset(row.model for row in self.rows)

    def for_model(self, model: str, on: date | None = None, prompt_tokens: int = 0) -> ModelPrices | None:
        """Prices of one request.

        Args:
            model: As a request names it.
            on: Day (UTC) of the request; without it the newest prices.
            prompt_tokens: Length of the whole prompt, cached parts included.

        Returns:
            None for a model, or a day, that the table does not have: prices are not guessed from a model's family.
        """
        name = canonical_model(model)
        periods = [row for row in self.rows if row.model == name and (on is None or _first_day(row) <= on)]
        tiers = [row for row in periods if row.valid_from == periods[-1].valid_from]
        applying = [row for row in tiers if lower_bound_tokens(row) < prompt_tokens]
        return applying[-1] if applying else None

    def overridden_by(self, other: PriceTable) -> PriceTable:
        """All prices of the other table, and of this one the models that the other lacks."""
        return PriceTable([*other, *(row for row in self.rows if row.model not in other.models)])


def lower_bound_tokens(row: ModelPrices) -> int:
    """Prompts longer than this cost the row's prices; -1 for the lowest tier, so that empty prompts have a price."""
    return -1 if row.above_prompt_tokens is None else row.above_prompt_tokens


def _first_day(row: ModelPrices) -> date:
    return row.valid_from or date.min


def _place(row: ModelPrices) -> tuple[str, date, int]:
    return row.model, _first_day(row), lower_bound_tokens(row)


def _check_places(rows: tuple[ModelPrices, ...]) -> None:
    places = [_place(row) for row in rows]
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        raise ValueError(f"{_described(twice[0])} has two prices")
    lowest = {place[:2] for place in places if place[2] < 0}
    without = [place for place in places if place[:2] not in lowest]
    if without:
        raise ValueError(f"{_described(without[0])} has no price for shorter prompts")


def _described(place: tuple[str, date, int]) -> str:
    model, day, tokens = place
    when = "" if day == date.min else f" from {day}"
    return f"{model}{when}" + ("" if tokens < 0 else f" above {tokens} prompt tokens")
