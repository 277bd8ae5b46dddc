from __future__ import annotations

from pathlib import Path

import pytest

from kv_pipeline_tests.factories import bring_up_to_date, open_store


@pytest.fixture
def inbox(tmp_path):
    return tmp_path / "inbox"


@pytest.fixture
def store(tmp_path, monkeypatch):
    return open_store(tmp_path / "store", monkeypatch)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A store of the committed example."""
    with pytest.MonkeyPatch.context() as patch:
        made = open_store(tmp_path_factory.mktemp("example"), patch)
        bring_up_to_date(made, Path(__file__).parents[2] / "data" / "example")
        yield made
