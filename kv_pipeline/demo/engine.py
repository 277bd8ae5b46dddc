"""A clock without a wall: scripts of concurrent agents, run in the order of their simulated time.

A script is a generator. It yields the millisecond at which it wants to go on, or a `Join` to start other
scripts and wait for all of them; what it returns is handed to whoever joined it. So requests of parallel
agents reach the demo API and the proxy in time order, which both depend on.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Join:
    """Start scripts, each at its time, and go on when all have ended, with their results in order."""

    starts: tuple[tuple[int, Script], ...]


Script = Generator[int | Join, Any, Any]


@dataclass(slots=True)
class _Task:
    script: Script
    parent: _Task | None = None
    place: int = 0
    waiting_for: int = 0
    results: list[Any] = field(default_factory=list)


def run(starts: list[tuple[int, Script]]) -> None:
    """Run scripts to their end. Those due at the same millisecond run in the order they were scheduled."""
    _Engine().run(starts)


class _Engine:
    """The event queue."""

    def __init__(self) -> None:
        self._due: list[tuple[int, int, _Task, Any]] = []
        self._scheduled = 0

    def run(self, starts: list[tuple[int, Script]]) -> None:
        for at_ms, script in starts:
            self._schedule(at_ms, _Task(script), None)
        while self._due:
            at_ms, _, task, value = heapq.heappop(self._due)
            self._step(at_ms, task, value)

    def _schedule(self, at_ms: int, task: _Task, value: Any) -> None:  # noqa: ANN401 - whatever a script returned
        heapq.heappush(self._due, (at_ms, self._scheduled, task, value))
        self._scheduled += 1

    def _step(self, at_ms: int, task: _Task, value: Any) -> None:  # noqa: ANN401 - whatever a script returned
        try:
            wish = task.script.send(value)
        except StopIteration as end:
            self._finish(at_ms, task, end.value)
            return
        if isinstance(wish, Join):
            self._start(task, wish)
        else:
            self._schedule(max(at_ms, wish), task, None)

    def _start(self, parent: _Task, join: Join) -> None:
        parent.waiting_for = len(join.starts)
        parent.results = [None] * len(join.starts)
        for place, (at_ms, script) in enumerate(join.starts):
            self._schedule(at_ms, _Task(script, parent, place), None)

    def _finish(self, at_ms: int, task: _Task, result: Any) -> None:  # noqa: ANN401 - whatever a script returned
        parent = task.parent
        if parent is None:
            return
        parent.results[task.place] = result
        parent.waiting_for -= 1
        if not parent.waiting_for:
            self._schedule(at_ms, parent, parent.results)
