from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from kv_pipeline.demo import EXAMPLE, DemoTruth, write_landing


@dataclass(frozen=True)
class Landing:
    root: Path
    truth: DemoTruth


@pytest.fixture(scope="session")
def landing(tmp_path_factory) -> Landing:
    root = tmp_path_factory.mktemp("landing")
    return Landing(root, write_landing(root, size=EXAMPLE, seed=1))
