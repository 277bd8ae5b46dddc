from __future__ import annotations

import pytest

from kv_pipeline.prices.loading import load_prices
from kv_pipeline.reports.write import ReportOptions, write_reports
from kv_pipeline_tests.cli.commands import EXAMPLE
from kv_pipeline_tests.factories import bring_up_to_date, open_store


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """A store of the example, up to date."""
    with pytest.MonkeyPatch.context() as patch:
        store = open_store(tmp_path_factory.mktemp("example") / "store", patch)
        bring_up_to_date(store, EXAMPLE)
        yield store


@pytest.fixture(scope="session")
def prices():
    return load_prices()


@pytest.fixture(scope="session")
def written(example, prices, tmp_path_factory):
    """The example's pages."""
    return write_reports(example, tmp_path_factory.mktemp("report"), ReportOptions(prices))
