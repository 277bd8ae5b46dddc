"""Dagster's daemon as a process of a test, in a process group of its own with everything that it starts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import dagster as dg

from kv_pipeline.store import WRITER_LOCK

_T = TypeVar("_T")
PATIENCE_S = 300
FAST = {"KV_PIPELINE_SETTLE_S": "0", "KV_PIPELINE_SENSOR_S": "2"}


@contextmanager
def daemon(environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon on the real definitions; it and what it started are killed at the end."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "dagster._daemon", "run", "-m", "kv_pipeline.defs"],
            env=dict(environment), stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        kill_group(process)
        process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process group that a test started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def switch_on(environment: Mapping[str, str], sensor: str = "landing_sensor") -> None:
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "sensor", "start", sensor, "-m", "kv_pipeline.defs"]
    subprocess.run(command, env=dict(environment), check=True, capture_output=True, timeout=PATIENCE_S)


@contextmanager
def held(store: Path, lock: str = WRITER_LOCK) -> Iterator[None]:
    """Nobody can write meanwhile, or, with "lock", open the store: a run that begins waits in the middle."""
    with (store / lock).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_for(what: Callable[[], _T], log: Path) -> _T:
    """What is found, once something is."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-5_000:])


def pid_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int:
    """The process that said it works on a run."""
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    messages = [entry.get_dagster_event().message or "" for entry in events]
    (pid,) = {match for message in messages for match in re.findall(r"pid: (\d+)", message)}
    return int(pid)


def is_up_to_date(instance: dg.DagsterInstance) -> bool:
    """Whether the sensor's last tick found nothing to request, and no run is going."""
    ticks = [
        tick
        for state in instance.all_instigator_state()
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    ]
    is_idle = all(run.is_finished for run in instance.get_runs())
    return is_idle and [tick.skip_reason for tick in ticks] == ["Everything is up to date."]
