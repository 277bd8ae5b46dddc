"""Runs the pipeline in processes that kill themselves in the middle.

Imports take longer than a run, so one process imports everything and forks a child for each order it reads:
`{"store": ..., "inbox": ..., "kill_at": n}`. The child is killed just before its n-th durable step (a file made
permanent, a file renamed into place, a commit of Dagster's databases, an object written or deleted); with null it
finishes and its steps are counted. Stores in buckets are published whenever state is written; `environment` may say
where they are.
Nothing that starts threads may run before the fork.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kv_pipeline.remote.url import Location, location


def serve() -> None:
    import dagster as dg
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    from kv_pipeline.defs import session  # noqa: F401  (imported before the fork)

    _import_what_runs_import(Path(sys.argv[1]))
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            step = _counter(order["kill_at"], writing)
            os.fsync, os.replace = _before(os.fsync, step), _before(os.replace, step)
            event.listen(Engine, "commit", lambda _, step=step: step())
            os.environ.update(order.get("environment", {}))
            if "://" in order["store"]:
                _kill_among_objects(step)
            _run(location(order["store"]), location(order["inbox"]))
        os.close(writing)
        with os.fdopen(reading, "rb") as counted:
            n_steps = len(counted.read())
        _, status = os.waitpid(child, 0)
        answer = {"n_steps": n_steps, "is_killed": os.WIFSIGNALED(status), "status": status}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _import_what_runs_import(folder: Path) -> None:
    """Much is imported at its first use; a trial run in a child tells what, and children then find it imported."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        _run(
            folder / f"store-{os.getpid()}",
            folder / "inbox",
            at_end=lambda: os.write(writing, "\n".join(sys.modules).encode()),
        )
    os.close(writing)
    with os.fdopen(reading, "r") as modules:
        for name in modules.read().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    os.wait()


def _counter(kill_at: int | None, writing: int) -> Callable[[], None]:
    n_steps = 0

    def step() -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(writing, b".")

    return step


def _before(function: Callable[..., Any], step: Callable[[], None]) -> Callable[..., Any]:
    def stepping(*arguments: Any, **options: Any) -> Any:
        step()
        return function(*arguments, **options)

    return stepping


def _kill_among_objects(step: Callable[[], None]) -> None:
    from kv_pipeline.remote import working_copy
    from kv_pipeline.remote.objects import Objects

    working_copy.PUBLISH_INTERVAL_S = 0.0
    for name in ("put", "delete"):
        setattr(Objects, name, _before(getattr(Objects, name), step))


def _run(store: Location, inbox: Location, at_end: Callable[[], object] = bool) -> None:
    from kv_pipeline.runner import Inputs, bring_up_to_date
    from kv_pipeline.store import Store

    code = 1
    try:
        bring_up_to_date(Store.open(store), Inputs(inbox))
        code = 0
    finally:
        at_end()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
