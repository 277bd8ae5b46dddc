"""A PostgreSQL instance that workers could share, and workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kv_pipeline.cluster.celery_app import QUEUE_VARIABLE
from kv_pipeline.defs.instance import BROKER_VARIABLE, HOME_VARIABLE, POSTGRES_VARIABLE
from kv_pipeline.store_settings import SALT_VARIABLE
from kv_pipeline_tests.services import broker_queue, postgres_database

COMMAND = [sys.executable, "-c", "from kv_pipeline.cli import main; main()"]
SALT = "cluster test"


@dataclass
class Cluster:
    """Where workers of a test meet.

    Attributes:
        environment: Of every process.
        folder: Each process's own files.
    """

    environment: dict[str, str]
    folder: Path

    @contextmanager
    def process(self, name: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
        """A `kv-pipeline` command in a process group of its own, which is killed at the end."""
        with (
            (self.folder / f"{name}.log").open("w") as log,
            subprocess.Popen(
                [*COMMAND, *map(str, arguments)], env=self.environment, stdout=log, stderr=log, text=True,
                start_new_session=True,
            ) as process,
        ):  # fmt: skip
            try:
                yield process
            finally:
                kill(process)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children, which are ours."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def cluster_on(tmp_path: Path) -> Iterator[Callable[[str], Cluster]]:
    """Makes a cluster on a broker, with an empty database and a queue of its own."""
    with ExitStack() as stack:

        def make(broker: str) -> Cluster:
            url = stack.enter_context(postgres_database())
            variables = {
                POSTGRES_VARIABLE: url,
                BROKER_VARIABLE: broker,
                QUEUE_VARIABLE: stack.enter_context(broker_queue(broker)),
                SALT_VARIABLE: SALT,
            }
            kept = {name: value for name, value in os.environ.items() if name != HOME_VARIABLE}
            return Cluster({**kept, **variables}, tmp_path)

        yield make
