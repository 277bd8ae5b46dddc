from __future__ import annotations

import pytest

from kv_pipeline_tests.factories import open_store


@pytest.fixture
def inbox(tmp_path):
    return tmp_path / "inbox"


@pytest.fixture
def store(tmp_path, monkeypatch):
    return open_store(tmp_path / "store", monkeypatch)
