from __future__ import annotations

from pathlib import Path

import pytest

from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store
from kv_pipeline_tests.cli.commands import EXAMPLE, Command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "200")
    return Command(capsys, monkeypatch)


@pytest.fixture(scope="session")
def example_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the example, up to date."""
    root = tmp_path_factory.mktemp("example") / "store"
    bring_up_to_date(Store.open(root), Inputs(EXAMPLE))
    return root
