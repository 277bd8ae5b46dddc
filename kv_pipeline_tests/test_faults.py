"""What goes wrong around a run, for real: after each fault the next run completes and equals a clean rebuild."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy.exc import OperationalError

from kv_pipeline.defs.instance import POSTGRES_VARIABLE, open_instance
from kv_pipeline.errors import StoreError
from kv_pipeline.runner import Inputs, _records_named, bring_up_to_date
from kv_pipeline.sources.claude_code_proxy import database
from kv_pipeline.store import Store
from kv_pipeline_tests.daemon import held, wait_for
from kv_pipeline_tests.services import own_postgres
from kv_pipeline_tests.test_crash import assert_same, contents
from kv_pipeline_tests.upkeep.conftest import EXAMPLE

SALT = "faults"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
"""Source: linux/prctl.h, linux/capability.h."""
STARTED = dg.DagsterRunStatus.STARTED
RUN = "from kv_pipeline.cli import main; main()"


@pytest.fixture(scope="module", autouse=True)
def salted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_PIPELINE_SALT", SALT)
        patch.delenv("DAGSTER_HOME", raising=False)
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(EXAMPLE / "grace", Path(name) / "inbox" / "grace")
        yield Path(name)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    bring_up_to_date(Store.open(folder / "clean"), Inputs(folder / "inbox"))
    return contents(folder / "clean")


def command(inbox: Path, store: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", RUN, "run", "--inbox", str(inbox), "--store", str(store), "--json"]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120, **options)


def only_tables(found: dict[str, Any]) -> dict[str, Any]:
    """Without states, which name the landing folder's files by inode."""
    return {name: value for name, value in found.items() if name.endswith(".parquet")}


def tables_of(store: Path) -> dict[str, Any]:
    return only_tables(contents(store))


def assert_recovers(inbox: Path, store: Path, expected: dict[str, Any]) -> None:
    bring_up_to_date(Store.open(store), Inputs(inbox))
    assert_same(contents(store), expected, "after the fault")
    assert not list(store.rglob(".tmp-*"))


@pytest.mark.parametrize("limit_kb", [6, 200])
def test_a_full_disk(folder: Path, expected: dict[str, Any], limit_kb: int) -> None:
    """No file may grow beyond a size: tables, states or Dagster's databases, whichever comes first."""

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kb * 1024, limit_kb * 1024))

    store = folder / f"full-{limit_kb}"
    done = command(folder / "inbox", store, preexec_fn=small_disk)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("kv-pipeline: ")  # Dagster's own complaints may come before
    assert "Traceback" not in done.stderr
    assert_recovers(folder / "inbox", store, expected)


def like_everybody() -> None:
    """Root without the capabilities that let it pass permissions by; of other users nothing changes."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_a_store_that_can_not_be_written(folder: Path, expected: dict[str, Any]) -> None:
    store = folder / "read-only"
    shutil.copytree(folder / "clean", store, ignore=shutil.ignore_patterns("dagster"))
    path = next((store / "traces" / "grace").iterdir())
    path.unlink()
    before = contents(store)
    for each in (store, *store.rglob("*")):
        each.chmod(0o555 if each.is_dir() else 0o444)
    done = command(folder / "inbox", store, preexec_fn=like_everybody)
    for each in (store, *store.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    assert done.returncode == 1
    assert done.stderr.startswith(f"kv-pipeline: The store at {store} can't be used: Permission denied")
    assert "Traceback" not in done.stderr
    assert_same(contents(store), before, "after a run that may not write")
    assert_recovers(folder / "inbox", store, expected)


def test_a_landing_file_that_can_not_be_read(folder: Path, expected: dict[str, Any]) -> None:
    inbox, store = folder / "locked-inbox", folder / "of-locked"
    shutil.copytree(folder / "inbox", inbox)
    locked = (inbox / "grace" / "requests.db", sorted(inbox.rglob("*.jsonl"))[0])
    for path in locked:
        path.chmod(0)
    done = command(inbox, store, preexec_fn=like_everybody)
    assert done.returncode == 1
    notices = json.loads(done.stdout)["notices"]
    assert [notice["reason"] for notice in notices] == ["unreadable_file"] * 2
    for path in locked:
        path.chmod(0o644)
    bring_up_to_date(Store.open(store), Inputs(inbox))
    assert_same(tables_of(store), only_tables(expected), "when readable")


@pytest.mark.parametrize("change", ["deleted", "replaced", "grown"])
def test_a_database_that_changes_while_it_is_read(
    folder: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    inbox, store = folder / f"{change}-inbox", folder / change
    shutil.copytree(folder / "inbox", inbox)
    path = inbox / "grace" / "requests.db"
    content = path.read_bytes()
    if change == "grown":
        path.write_bytes((EXAMPLE / "linus" / "requests.db").read_bytes())
    reading = database._rows
    times = []

    def changing(*arguments: Any) -> Iterator[Any]:
        for number, row in enumerate(reading(*arguments)):
            yield row
            if number == 1 and not times:
                times.append(number)
                path.unlink()
                if change != "deleted":
                    path.write_bytes(content)

    monkeypatch.setattr(database, "_rows", changing)
    bring_up_to_date(Store.open(store), Inputs(inbox))
    assert times
    path.write_bytes(content)
    bring_up_to_date(Store.open(store), Inputs(inbox))
    assert_same(tables_of(store), only_tables(expected), f"when {change}")


def test_two_runs_at_once(folder: Path, expected: dict[str, Any]) -> None:
    store, done = folder / "two", list[subprocess.CompletedProcess[str]]()
    threads = [threading.Thread(target=lambda: done.append(command(folder / "inbox", store))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    made = sorted(json.loads(each.stdout)["recomputed_partitions"].get("raw_requests", 0) for each in done)
    assert made == [0, 1]
    assert_same(contents(store), expected, "after two runs at once")


def test_a_clock_that_goes_backwards(folder: Path, expected: dict[str, Any]) -> None:
    """A file whose time lies in the future, and one that then is older than what was read before: both are news."""
    inbox, store = folder / "clock-inbox", folder / "clock"
    shutil.copytree(folder / "inbox", inbox)
    path = inbox / "grace" / "requests.db"
    for time_s in (4_000_000_000, 1_000_000_000):
        os.utime(path, (time_s, time_s))
        outcome = bring_up_to_date(Store.open(store), Inputs(inbox))
        assert outcome.recomputed["raw_requests"] == 1
        assert_same(tables_of(store), only_tables(expected), str(time_s))
    assert bring_up_to_date(Store.open(store), Inputs(inbox)).recomputed == {}


def test_a_store_that_goes_away_while_a_run_waits(folder: Path) -> None:
    """Another process replaced the salt while this one waited for the lock: it must not mix hashes of two salts."""
    store = Store.open(folder / "salts")
    settings = folder / "salts" / "store.json"
    settings.write_text(settings.read_text().replace(store.settings.salt_check, "0" * 32))
    with pytest.raises(StoreError, match="was replaced in the meantime"):
        bring_up_to_date(store, Inputs(folder / "inbox"))


def test_what_postgresql_says_in_several_lines_is_told_in_one() -> None:
    says = "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally.\n"
    with pytest.raises(StoreError) as raised, _records_named():
        raise OperationalError("SELECT 1", {}, ConnectionError(says))
    told = "server closed the connection unexpectedly This probably means the server terminated abnormally. Check space"
    assert told in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgresql_restarted_during_a_run(
    folder: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The run that was going ends, with an error or without; a few seconds each."""
    store, landed = folder / f"postgresql-{mode}", {path: path.stat() for path in (folder / "inbox").rglob("*")}
    Store.open(store)
    with own_postgres() as server:
        monkeypatch.setenv(POSTGRES_VARIABLE, server.url)
        with open_instance(store) as instance, ThreadPoolExecutor(1) as pool:
            assert instance.get_runs_count() == 0
            running = pool.submit(command, folder / "inbox", store)
            wait_for(instance.get_runs, store / "store.json")
            with held(store, "lock"):  # no step gets further than the state that it reads first and writes last
                wait_for(lambda: instance.get_runs(dg.RunsFilter(statuses=[STARTED])), store / "store.json")
                server.control("-m", mode, "restart")
            done = running.result()
        assert done.returncode in {0, 1}, done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == 0 or done.stderr.splitlines()[-1].startswith("kv-pipeline: ")
        assert_recovers(folder / "inbox", store, expected)
        with open_instance(store) as instance:
            statuses = {run.status.value for run in instance.get_runs()}
    assert statuses <= {"SUCCESS", "FAILURE"}
    assert {path: path.stat() for path in landed} == landed
