"""One run over the committed example; each test works on copies of landing folder and store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from kv_pipeline.runner import Inputs, RunOutcome, bring_up_to_date
from kv_pipeline.store import Store

EXAMPLE = Path(__file__).parents[2] / "data/example"
SALT = "upkeep"


@dataclass
class Place:
    """A landing folder and its store."""

    inbox: Path
    store: Store

    def run(self, **options: bool) -> RunOutcome:
        return bring_up_to_date(self.store, Inputs(self.inbox), **options)

    def tables(self, *without: str) -> dict[str, pl.DataFrame]:
        return tables(self.store.root, *without)


def tables(root: Path, *without: str) -> dict[str, pl.DataFrame]:
    """Every table's partitions by file name, quarantine excepted."""
    names = (path.relative_to(root) for path in sorted(root.rglob("*.parquet")))
    return {
        str(name): pl.read_parquet(root / name, hive_partitioning=False)
        for name in names
        if name.parts[0] not in {"quarantine", *without}
    }


def assert_same(found: dict[str, pl.DataFrame], expected: dict[str, pl.DataFrame]) -> None:
    assert sorted(found) == sorted(expected)
    for name, frame in expected.items():
        assert found[name].equals(frame), name


def copy_inbox(source: Path, target: Path, *without: str) -> Path:
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without)))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of the example: fingerprints name files, so the landing folder is the example itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_PIPELINE_SALT", SALT)
        store = Store.open(tmp_path_factory.mktemp("made") / "store")
        bring_up_to_date(store, Inputs(EXAMPLE))
    yield store.root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("KV_PIPELINE_SALT", SALT)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    shutil.copytree(made, tmp_path / "store", ignore=shutil.ignore_patterns("dagster.yaml"))
    return Place(EXAMPLE, Store.open(tmp_path / "store"))


def moved(place: Place, inbox: Path, *without: str) -> Place:
    """The same store over a copy of the landing folder; the next run reads it again and finds nothing changed."""
    copy_inbox(place.inbox, inbox, *without)
    return Place(inbox, place.store)


def text_in(path: Path) -> bytes:
    if path.suffix != ".parquet":
        return path.read_bytes()
    return repr(pl.read_parquet(path, hive_partitioning=False).to_dicts()).encode()


def mentions(root: Path, text: bytes) -> list[Path]:
    """Files under a folder that contain a text, in their names or inside."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if os.fsencode(path.relative_to(root)).find(text) >= 0 or text in text_in(path)]
