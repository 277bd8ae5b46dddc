"""The daemon, its descendants, and who kills them: processes that this one started, told by parentage alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

_PR_SET_CHILD_SUBREAPER: Final = 36
"""Source: linux/prctl.h."""
_RUN_PROCESS: Final = "spawn_main"
"""In the command line of a process that the code server spawned: a run's."""


class Process(NamedTuple):
    """A process of this machine.

    Attributes:
        pid: Its id.
        parent: Its parent's id.
        is_dead: Whether it ended and nobody asked how.
    """

    pid: int
    parent: int
    is_dead: bool


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that they stay descendants."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def descendants() -> list[int]:
    """Living processes that this one started, or that these started."""
    children: dict[int, list[Process]] = {}
    for process in _processes():
        children.setdefault(process.parent, []).append(process)
    found, next_ones = list[int](), [os.getpid()]
    while next_ones:
        mine = children.get(next_ones.pop(), [])
        found += [process.pid for process in mine if not process.is_dead]
        next_ones += [process.pid for process in mine]
    return found


def run_processes() -> list[int]:
    """Descendants that execute a run of Dagster."""
    return [pid for pid in descendants() if _RUN_PROCESS in _text(pid, "cmdline")]


def kill(pid: int) -> bool:
    """Kill a descendant of this process, and nothing else; returns whether it was one."""
    if pid not in descendants():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def bury_orphans(own: int | None) -> None:
    """Take note of adopted processes that ended; those that `subprocess` started are its own to ask."""
    for process in _processes():
        if process.is_dead and process.parent == os.getpid() and process.pid != own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process, now and at its peak; zeros if it is gone."""
    lines = dict(
        line.split(":", 1) for line in _text(pid, "status").splitlines() if line.startswith(("VmRSS", "VmHWM"))
    )
    now, peak = (int(lines.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def _processes() -> Iterator[Process]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            _, _, fields = _text(int(folder.name), "stat").rpartition(") ")
            if fields:
                state, parent, *_ = fields.split()
                yield Process(int(folder.name), int(parent), state == "Z")


def _text(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


class Daemon:
    """A `dagster-daemon` in a process group of its own, which can be killed and started again.

    Args:
        environment: Of the process.
        log: What it writes goes here.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment, self._log = dict(environment), log
        self._process: subprocess.Popen[bytes] | None = None
        self.n_killed = 0

    @property
    def pid(self) -> int | None:
        """Of the daemon that was started last."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-W", "ignore", "-m", "dagster._daemon", "run", "-m", "kv_pipeline.defs"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, *, with_descendants: bool) -> None:
        """Kill it; with everything that it started, as when the machine loses power."""
        assert self._process is not None
        for pid in descendants() if with_descendants else [self._process.pid]:
            kill(pid)
        self._process.wait()
        self.n_killed += 1

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def end(self) -> None:
        """End everything that was started here."""
        while left := descendants():
            for pid in left:
                kill(pid)
            if self._process is not None:
                self._process.wait()
            bury_orphans(self.pid)
