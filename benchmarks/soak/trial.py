"""One trial: arrivals, the daemon and the killer side by side, then quiet, then the comparison with a clean store."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorTick

from benchmarks.soak.arrivals import Step, generate, schedule
from benchmarks.soak.processes import Daemon, bury_orphans, descendants, kill, memory_bytes, run_processes
from kv_pipeline.defs.instance import open_instance
from kv_pipeline.store import Store

SALT: Final = "soak"
SETTLE_S: Final = 2
SENSOR_S: Final = 5
_POLL_S: Final = 0.2
_LOOK_S: Final = 2.0
_VICTIMS: Final = {"run": 8, "daemon": 1, "everything": 1}
"""Who is killed, and how often: a run, the daemon alone, or the daemon with everything that it started."""
_AFTERWARDS: Final = 0.25
"""How much longer than things arrive somebody is killed."""
_RESTART_S: Final = 3.0
_UP_TO_DATE: Final = "Everything is up to date."
_COMMAND: Final = [sys.executable, "-W", "ignore", "-c", "from kv_pipeline.cli import main; main()"]


class Plan(NamedTuple):
    """What a trial is about.

    Attributes:
        users: How many.
        databases: Of all users.
        arrive_s: Seconds in which everything arrives.
        seed: Of everything random.
        kill_every_s: Mean time between kills.
        patience_s: Seconds to get quiet.
    """

    users: int
    databases: int
    arrive_s: float
    seed: int
    kill_every_s: float
    patience_s: float


class Outcome(NamedTuple):
    """What happened.

    Attributes:
        is_same: Whether it got quiet, and each file is as in the clean store.
        different: Files that are not.
        left_over: Temporary files, and runs that have not ended.
        n_files: Files of tables and states that were compared.
        n_databases: Recordings in the store.
        n_conversations: Conversations in the store.
        n_changes: Changes of the landing folder.
        runs: Status to number of runs.
        jobs: Job to number of runs.
        killed: What was killed, and how often.
        n_lost_runs: Runs that failed though none of their steps did: their process was killed.
        n_requested_again: Requests that were made more than once.
        failed_steps: Step and class of error to number of runs.
        s_to_quiet: Seconds from the last change, or the last kill, to the tick that found everything up to date.
        peak_mb: Most memory of one run process, and of all processes together.
        notices: Reason to number, as the clean run says.
        clean_s: Seconds of the clean run.
    """

    is_same: bool
    different: list[str]
    left_over: list[str]
    n_files: int
    n_databases: int
    n_conversations: int
    n_changes: int
    runs: dict[str, int]
    jobs: dict[str, int]
    killed: dict[str, int]
    n_lost_runs: int
    n_requested_again: int
    failed_steps: dict[str, int]
    s_to_quiet: float | None
    peak_mb: dict[str, float]
    notices: dict[str, int]
    clean_s: float


def soak(plan: Plan, out: Path) -> Outcome:
    """Run a trial in a folder; everything that it starts has ended when it returns."""
    inbox, store = out / "inbox", out / "store"
    recordings, transcripts = generate(out / "stock", inbox, plan.users, plan.databases, plan.seed)
    steps = schedule(recordings, transcripts, plan.arrive_s, Random(plan.seed))  # noqa: S311 - no secret
    inbox.mkdir()
    os.environ |= {"KV_PIPELINE_SALT": SALT}
    Store.open(store)
    with open_instance(store) as instance:
        with _daemon(inbox, store, out) as daemon:
            _switch_on(daemon.environment)
            daemon.start()
            trial = _Trial(daemon, instance, plan)
            trial.arrive(steps)
            trial.kill_on()
            trial.wait_for_quiet()
        return _outcome(trial, len(steps), inbox, store)


@contextmanager
def _daemon(inbox: Path, store: Path, out: Path) -> Iterator[Daemon]:
    environment = os.environ | {
        "DAGSTER_HOME": str(store / "dagster"),
        "KV_PIPELINE_INBOX": str(inbox),
        "KV_PIPELINE_STORE": str(store),
        "KV_PIPELINE_SETTLE_S": str(SETTLE_S),
        "KV_PIPELINE_SENSOR_S": str(SENSOR_S),
    }
    daemon = Daemon(environment, out / "daemon.log")
    try:
        yield daemon
    finally:
        daemon.end()


def _switch_on(environment: dict[str, str]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "sensor", "start", "landing_sensor"]
    subprocess.run([*command, "-m", "kv_pipeline.defs"], env=environment, check=True, capture_output=True)


class _Trial:
    """The daemon and what is done to it.

    Args:
        daemon: The daemon, started.
        instance: Its instance.
        plan: What the trial is about.
    """

    def __init__(self, daemon: Daemon, instance: dg.DagsterInstance, plan: Plan) -> None:
        self._daemon, self._plan, self.instance = daemon, plan, instance
        self._rng = Random(f"kill {plan.seed}")  # noqa: S311 - no secret
        self.killed = Counter[str]()
        self.peak_bytes = {"run": 0, "all": 0}
        self.s_to_quiet: float | None = None
        self._restart_at: float | None = None
        self._last_s = time.time()
        self._kill_at = time.monotonic() + self._pause_s()

    def arrive(self, steps: list[Step]) -> None:
        """Let everything arrive, and kill meanwhile."""
        begun = time.monotonic()
        for step in steps:
            while (now := time.monotonic()) < begun + step.at_s:
                self._attend()
                time.sleep(min(_POLL_S, max(0.0, begun + step.at_s - now)))
            step.change()
        self._last_s = time.time()

    def kill_on(self) -> None:
        """Go on killing for a while, so that runs of the last changes are met."""
        end = time.monotonic() + _AFTERWARDS * self._plan.arrive_s
        while time.monotonic() < end:
            self._attend()
            time.sleep(_POLL_S)
        self._kill_at = math.inf
        self._last_s = time.time()

    def wait_for_quiet(self) -> None:
        """Wait until the sensor finds everything up to date, some time after the last change, and no run is going."""
        end = time.time() + self._plan.patience_s
        while time.time() < end:
            self._attend()
            tick = self._last_tick()
            is_late = tick is not None and tick.timestamp > self._last_s + 2 * SETTLE_S
            if is_late and tick is not None and tick.skip_reason == _UP_TO_DATE and not unfinished(self.instance):
                self.s_to_quiet = tick.timestamp - self._last_s
                return
            time.sleep(_LOOK_S)

    def _pause_s(self) -> float:
        return self._rng.expovariate(1 / self._plan.kill_every_s)

    def _kill_somebody(self) -> None:
        """Kill a run, and now and then the daemon; once a run is there and the daemon is up."""
        runs = run_processes()
        if not runs or not self._daemon.is_alive():
            return
        victim = self._rng.choices(list(_VICTIMS), list(_VICTIMS.values()))[0]
        if victim == "run":
            kill(self._rng.choice(runs))
        else:
            self._daemon.kill(with_descendants=victim == "everything")
            self._restart_at = time.monotonic() + _RESTART_S
        self.killed[victim] += 1
        self._kill_at = time.monotonic() + self._pause_s()

    def _attend(self) -> None:
        """Kill somebody if it is time, start the daemon again, take note of who ended, and of memory."""
        if time.monotonic() >= self._kill_at:
            self._kill_somebody()
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self._daemon.start()
            self._restart_at = None
        bury_orphans(self._daemon.pid)
        runs = run_processes()
        measured = {pid: memory_bytes(pid) for pid in descendants()}
        peak = max((measured[pid][1] for pid in runs if pid in measured), default=0)
        total = sum(now for now, _ in measured.values())
        self.peak_bytes = {"run": max(self.peak_bytes["run"], peak), "all": max(self.peak_bytes["all"], total)}

    def _last_tick(self) -> InstigatorTick | None:
        for state in self.instance.all_instigator_state():
            if state.instigator_name == "landing_sensor":
                ticks = self.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
                return ticks[0] if ticks else None
        return None


def unfinished(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that have not ended."""
    return [run for run in instance.get_runs() if not run.is_finished]


def contents(store: Path) -> dict[str, bytes]:
    """Files of tables and states, by name."""
    paths = [*store.rglob("*.parquet"), *(store / "state").glob("*.json")]
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(paths)}


def _outcome(trial: _Trial, n_changes: int, inbox: Path, store: Path) -> Outcome:
    clean = store.with_name("clean")
    begun = time.monotonic()
    notices = _clean_run(inbox, clean)
    clean_s = time.monotonic() - begun
    found, expected = contents(store), contents(clean)
    different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    open_runs = unfinished(trial.instance)
    left_over = [str(path.relative_to(store)) for path in store.rglob(".tmp-*")]
    left_over += [f"{run.job_name} {run.status.value}" for run in open_runs]
    runs = trial.instance.get_runs()
    failed = {
        run.run_id: _failed_step(trial.instance, run) for run in runs if run.status is dg.DagsterRunStatus.FAILURE
    }
    requests = Counter(run.tags.get("kv_pipeline/request", run.run_id) for run in runs)
    return Outcome(
        is_same=trial.s_to_quiet is not None and not different and not left_over,
        different=different,
        left_over=left_over,
        n_files=len(expected),
        n_databases=len(Store.open(store).partitions("message_index")),
        n_conversations=len(Store.open(store).partitions("traces")),
        n_changes=n_changes,
        runs=dict(Counter(run.status.value for run in runs)),
        jobs=dict(Counter(run.job_name for run in runs)),
        killed=dict(trial.killed),
        n_lost_runs=sum(step is None for step in failed.values()),
        n_requested_again=sum(number - 1 for number in requests.values()),
        failed_steps=dict(Counter(step for step in failed.values() if step)),
        s_to_quiet=trial.s_to_quiet,
        peak_mb={name: number / 1e6 for name, number in trial.peak_bytes.items()},
        notices=notices,
        clean_s=clean_s,
    )


def _failed_step(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Step and class of error of a failed run; None if no step failed."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.get_dagster_event()
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        return f"{event.step_key} {error.cls_name if error else ''}"
    return None


def _clean_run(inbox: Path, clean: Path) -> dict[str, int]:
    command = [*_COMMAND, "run", "--inbox", str(inbox), "--store", str(clean), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    said: dict[str, Any] = json.loads(done.stdout)
    return dict(Counter(notice["reason"] for notice in said["notices"]))
