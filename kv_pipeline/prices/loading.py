"""The one place that decides which prices count."""

from __future__ import annotations

from pathlib import Path

from kv_pipeline.core.prices import PriceTable


def load_prices(prices_file: Path | None = None) -> PriceTable:
    """All known prices, read without any network.

    A model's prices come whole from the first of these that knows the model: the user's file, the genai-prices
    package, the supplement shipped with this package.

    Args:
        prices_file: The user's file, if there is one.

    Raises:
        UsageError: The file is missing or is no price file.
    """
    from kv_pipeline.prices.files import SUPPLEMENT, file_prices
    from kv_pipeline.prices.published import published_prices

    known = file_prices(SUPPLEMENT).overridden_by(published_prices())
    return known if prices_file is None else known.overridden_by(file_prices(prices_file))
