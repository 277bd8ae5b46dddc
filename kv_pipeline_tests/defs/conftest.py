"""One run over the committed example, shared by the tests of this folder; each test works on a copy."""

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kv_pipeline.defs.build import build_defs
from kv_pipeline.defs.instance import open_instance
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store

EXAMPLE = Path(__file__).parents[2] / "data/example"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Place:
    """A landing folder and a store, opened the way Dagster does."""

    inbox: Path
    store: Store
    instance: dg.DagsterInstance

    @property
    def pipeline(self) -> PipelineResource:
        return PipelineResource(inbox=str(self.inbox), store=str(self.store.root), settle_s=0)

    def run(self, job: str, config: dict[str, Any] | None = None, **options: Any) -> dg.ExecuteInProcessResult:
        """Run a job in this process."""
        definitions = build_defs(resource_overrides={"pipeline": self.pipeline})
        return definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, run_config=QUIET | (config or {}), raise_on_error=False, **options
        )

    def materialize(self, asset: str, partition: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialize one asset, as the button in the UI does."""
        job = "ingest_databases" if asset in {"raw_requests", "message_index"} else "make_conversations"
        return self.run(job, asset_selection=[dg.AssetKey(asset)], partition_key=partition)

    def files(self) -> dict[str, bytes]:
        """Every table's file, by name."""
        return {
            str(path.relative_to(self.store.root)): path.read_bytes() for path in self.store.root.rglob("*.parquet")
        }


@contextlib.contextmanager
def writer_at_work(store: Store) -> Iterator[Callable[[], None]]:
    """Hold the writer lock as another process would; gives the function that lets go of it."""
    with (store.root / "writer.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def example_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "inbox")
    bring_up_to_date(Store.open(folder / "store"), Inputs(folder / "inbox"))
    return folder


@pytest.fixture
def place(example_store: Path, tmp_path: Path) -> Iterator[Place]:
    """The example, made by `kv-pipeline run`."""
    # Moved, not copied: fingerprints hold times and inodes of the inputs.
    inbox, store = example_store / "inbox", tmp_path / "store"
    shutil.copytree(example_store / "store", store, ignore=shutil.ignore_patterns("dagster.yaml"))
    with open_instance(store) as instance:
        yield Place(inbox, Store.open(store), instance)
