"""Killed at any moment and run again, the store is as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import polars as pl
import pytest

EXAMPLE = Path("data/example").resolve()
SALT = "crash test"
OF_THIS_MACHINE = {"dagster", "verified.json"}
"""Dagster tells of runs, and there were more; the other of times of files."""
N_DRIVERS = 2
N_KILLS = 10
N_FIRST_KILLS = 3


class Driver:
    """A process that runs the pipeline in children of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self, store: Path | str, inbox: Path | str, kill_at: int | None = None, **environment: str
    ) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"store": str(store), "inbox": str(inbox), "kill_at": kill_at, "environment": environment}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def driver(folder: Path) -> Iterator[Driver]:
    command = [sys.executable, "-m", "kv_pipeline_tests.crash_driver", str(folder)]
    environment = os.environ | {"KV_PIPELINE_SALT": SALT}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Driver(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleQueue[Driver]]:
    folder = tmp_path_factory.mktemp("trial")
    shutil.copytree(EXAMPLE / "grace", folder / "inbox" / "grace")
    idle: SimpleQueue[Driver] = SimpleQueue()
    with driver(folder) as first, driver(folder) as second:
        idle.put(first)
        idle.put(second)
        yield idle


@contextmanager
def borrowed(drivers: SimpleQueue[Driver]) -> Iterator[Driver]:
    one = drivers.get()
    try:
        yield one
    finally:
        drivers.put(one)


def contents(store: Path) -> dict[str, Any]:
    """Tables and states of a store, by path; Dagster's own files tell of runs, and of those there were more."""
    files = [
        path for path in store.rglob("*") if path.is_file() and not OF_THIS_MACHINE & {*path.relative_to(store).parts}
    ]
    tables = {path: pl.read_parquet(path, hive_partitioning=False) for path in files if path.suffix == ".parquet"}
    return {str(path.relative_to(store)): tables.get(path, path.read_bytes()) for path in sorted(files)}


def assert_same(found: dict[str, Any], expected: dict[str, Any], when: str) -> None:
    assert sorted(found) == sorted(expected), when
    for name, value in expected.items():
        same = value.equals(found[name]) if isinstance(value, pl.DataFrame) else value == found[name]
        assert same, f"{name} differs {when}"


def run_statuses(store: Path) -> set[str]:
    with closing(sqlite3.connect(store / "dagster" / "history" / "runs.db")) as database:
        return {status for (status,) in database.execute("SELECT status FROM runs")}


def copy_store(store: Path, copy: Path) -> Path:
    """A store whose Dagster instance is its own: the configuration names its folder."""
    shutil.copytree(store, copy)
    config = copy / "dagster" / "dagster.yaml"
    config.write_text(config.read_text().replace(str(store), str(copy)))
    return copy


def grow(inbox: Path) -> None:
    """From the beginning of the example's traffic to all of it."""
    shutil.rmtree(inbox)
    shutil.copytree(EXAMPLE, inbox)


def begin(inbox: Path) -> None:
    """One user is not there yet, one has a database less, one a database of which half is yet to come."""
    shutil.copytree(EXAMPLE, inbox, ignore=shutil.ignore_patterns("grace"))
    (inbox / "ada" / "requests.db").unlink()
    with closing(sqlite3.connect(inbox / "linus" / "requests.db")) as database, database:
        database.execute("DELETE FROM requests WHERE rowid > (SELECT max(rowid) / 2 FROM requests)")


def kill_and_recover(
    drivers: SimpleQueue[Driver], inbox: Path, store: Path, expected: dict[str, Any], kill_at: int
) -> set[str]:
    with borrowed(drivers) as one:
        killed = one.run(store, inbox, kill_at)
        assert killed["is_killed"], killed
        after = one.run(store, inbox)
    assert after["status"] == 0, f"the run after a kill at step {kill_at} failed"
    assert_same(contents(store), expected, f"after a kill at step {kill_at}")
    assert list(store.rglob(".tmp-*")) == []
    statuses = run_statuses(store)
    shutil.rmtree(store)
    return statuses


def test_a_run_killed_at_any_step_and_run_again_is_as_if_never_killed(tmp_path, drivers):
    inbox, seed = tmp_path / "inbox", tmp_path / "seed"
    begin(inbox)
    with borrowed(drivers) as one:
        assert one.run(seed, inbox)["status"] == 0
        grow(inbox)
        copy_store(seed, tmp_path / "never killed")
        whole = one.run(tmp_path / "never killed", inbox)
    expected = contents(tmp_path / "never killed")
    assert whole["status"] == 0
    assert whole["n_steps"] > 100

    def kill(kill_at: int) -> set[str]:
        store = copy_store(seed, tmp_path / f"killed-{kill_at}")
        return kill_and_recover(drivers, inbox, store, expected, kill_at)

    stride = whole["n_steps"] / N_KILLS
    with ThreadPoolExecutor(N_DRIVERS) as pool:
        statuses = set().union(*pool.map(kill, [int(stride * (n + 0.5)) + 1 for n in range(N_KILLS)]))
    assert statuses <= {"SUCCESS", "FAILURE"}


def test_a_first_run_killed_at_any_step_and_run_again_is_as_if_never_killed(tmp_path, drivers):
    with borrowed(drivers) as one:
        whole = one.run(tmp_path / "never killed", EXAMPLE)
    expected = contents(tmp_path / "never killed")
    stride = whole["n_steps"] / N_FIRST_KILLS

    def kill(kill_at: int) -> set[str]:
        return kill_and_recover(drivers, EXAMPLE, tmp_path / f"killed-{kill_at}", expected, kill_at)

    with ThreadPoolExecutor(N_DRIVERS) as pool:
        kills = [1, *(int(stride * n) for n in range(1, N_FIRST_KILLS))]
        assert set().union(*pool.map(kill, kills)) <= {"SUCCESS", "FAILURE"}


@pytest.mark.parametrize("delay_s", [1.8])
def test_the_command_killed_by_the_clock_and_run_again(tmp_path, drivers, delay_s):
    """As the kernel or an impatient user would, wherever the program is by then."""
    with borrowed(drivers) as one:
        one.run(tmp_path / "never killed", EXAMPLE)
        command = [sys.executable, "-c", "from kv_pipeline.cli import main; main()", "run", "--inbox", str(EXAMPLE),
                   "--store", str(tmp_path / "store")]  # fmt: skip
        environment = os.environ | {"KV_PIPELINE_SALT": SALT}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(delay_s)
            process.kill()
        assert one.run(tmp_path / "store", EXAMPLE)["status"] == 0
    assert_same(contents(tmp_path / "store"), contents(tmp_path / "never killed"), f"after {delay_s} s")
    assert run_statuses(tmp_path / "store") <= {"SUCCESS", "FAILURE"}
