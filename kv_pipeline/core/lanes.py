"""Which requests continue which, told by their messages alone.

A conversation's requests carry its whole history, so one that begins with all the messages of an earlier one continues
it. Such a chain of requests is a *lane*:

* A lane has one *kind*: session, model, tools, system prompt.
* A request continues a lane if it has more messages than the lane's latest request and begins with that request's
  messages, up to the one in which `min_shared` of its length are reached (its *mark*), or all but the last; the deepest
  mark wins. The first message may differ where an answer is shared, since clients rewrite it.
* A request that repeats the messages of an earlier one of its kind is a retry and in no lane. Openings, without an
  answer in them, begin a lane each: parallel agents may be sent the same prompt.
* One that differs from a lane's latest only by what its last message adds to the same tool results is an aside (a
  compaction, a question of the client's own) and in no lane, and so is one that asks for a summary.
* Everything else begins a lane. If an answer in its history stands in another lane's, it is *derived* from that.

No request is compared with all others: marks and answers are looked up. A message costs a few operations when it is
new, and an array's share of one when it is repeated.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

_U64 = npt.NDArray[np.uint64]
_Numbers = npt.NDArray[np.uint32]
DEFAULT_MIN_SHARED: Final = 0.97


class Aside(StrEnum):
    """Why a request is in no lane."""

    RETRY = "retry"
    SIDE = "side_request"


class Messages(NamedTuple):
    """Facts about each distinct message, by number.

    Attributes:
        identity: What tells it from others, u64.
        size: Its length, in any unit.
        is_answer: Whether the model said it.
        is_fork: Whether it tells a fork that it is one.
        has_results: Whether it answers tool calls; `results` which, as one id a set.
        asks_for_summary: Whether it asks for a compaction's summary.
    """

    identity: _U64
    size: npt.NDArray[np.int64]
    is_answer: npt.NDArray[np.bool_]
    is_fork: npt.NDArray[np.bool_]
    results: npt.NDArray[np.int64]
    asks_for_summary: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Lane:
    """A chain of requests.

    Attributes:
        requests: Places of its requests, in order.
        derived_from: Lane in which the last answer of its first request's history stands; None if in none.
        n_shared: First messages that it shares with the request of that lane it comes nearest to.
        is_fork: Whether it says that it is one.
        news: For each request the number of messages that the lane had before.
    """

    requests: list[int] = field(default_factory=list)
    news: list[int] = field(default_factory=list)
    derived_from: int | None = None
    n_shared: int = 0
    is_fork: bool = False


class Lanes(NamedTuple):
    """Lanes in the order they begin, and the requests that are in none, by place."""

    lanes: list[Lane]
    asides: dict[int, Aside]


def find_lanes(
    scopes: Sequence[Hashable],
    kinds: Sequence[Hashable],
    requests: Sequence[_Numbers],
    messages: Messages,
    min_shared: float = DEFAULT_MIN_SHARED,
) -> Lanes:
    """Put requests into lanes.

    Args:
        scopes: What lanes may be derived within: session.
        kinds: What must be equal within a lane: model, tools, system prompt.
        requests: Numbers of each request's messages, shape (n_messages,); requests in the order they were sent.
        messages: Facts about messages.
        min_shared: Share of a request that the next must begin with, 0 to 1.
    """
    finder = _Finder(messages, min_shared)
    for place, (scope, kind, numbers) in enumerate(zip(scopes, kinds, requests, strict=True)):
        finder.place(place, scope, (scope, kind), numbers)
    return Lanes(finder.lanes, finder.asides)


class _Tip(NamedTuple):
    """A lane's latest request."""

    lane: int
    numbers: _Numbers
    prefix: _U64


_Mark = tuple[Hashable, int, int, bool]
"""Kind, number of messages, their hash, and whether that is without the first."""


class _Finder:
    def __init__(self, messages: Messages, min_shared: float) -> None:
        self._messages, self._min_shared = messages, min_shared
        self.lanes: list[Lane] = []
        self.asides: dict[int, Aside] = {}
        self._tips: list[_Tip] = []
        self._marks: dict[_Mark, list[_Tip]] = {}
        self._ends: set[_Mark] = set()
        self._lane_of_answer: dict[tuple[Hashable, int], int] = {}

    def place(self, place: int, scope: Hashable, kind: Hashable, numbers: _Numbers) -> None:
        prefix = prefix_hashes(self._messages.identity[numbers])
        end = (kind, len(numbers), int(prefix[-1]) if len(prefix) else 0, False)
        is_answered = bool(self._messages.is_answer[numbers].any())
        if end in self._ends and is_answered:
            self.asides[place] = Aside.RETRY
            return
        if self._is_aside(kind, numbers, prefix):
            self.asides[place] = Aside.SIDE
            return
        self._ends.add(end)
        tip = self._continued(kind, numbers, prefix)
        is_fork = bool(self._messages.is_fork[numbers[len(tip.numbers) if tip else 0 :]].any())
        if tip is None or is_fork:
            tip = self._begin(scope, numbers, prefix, is_fork, tip)
        self._extend(place, scope, kind, _Tip(tip.lane, numbers, prefix), len(tip.numbers))

    def _begin(self, scope: Hashable, numbers: _Numbers, prefix: _U64, is_fork: bool, nearest: _Tip | None) -> _Tip:
        """A new lane, without requests yet."""
        number = len(self.lanes)
        origin = nearest.lane if nearest else self._origin(scope, numbers)
        lane = Lane(derived_from=origin, is_fork=is_fork)
        if origin is not None:
            lane.n_shared = n_equal(self._tips[origin].prefix, prefix)
        self.lanes.append(lane)
        none = numbers[:0]
        self._tips.append(_Tip(number, none, prefix[:0]))
        return self._tips[-1]

    def _origin(self, scope: Hashable, numbers: _Numbers) -> int | None:
        answers = self._messages.identity[numbers[self._messages.is_answer[numbers]]]
        known = (self._lane_of_answer.get((scope, int(answer))) for answer in answers[::-1])
        return next((lane for lane in known if lane is not None), None)

    def _extend(self, place: int, scope: Hashable, kind: Hashable, tip: _Tip, n_before: int) -> None:
        lane = self.lanes[tip.lane]
        lane.requests.append(place)
        lane.news.append(n_before)
        self._tips[tip.lane] = tip
        added = tip.numbers[max(0, n_before - 1) :]
        for answer in self._messages.identity[added[self._messages.is_answer[added]]].tolist():
            self._lane_of_answer[scope, answer] = tip.lane
        for mark in self._marks_of(kind, tip):
            self._marks.setdefault(mark, []).append(tip)

    def _marks_of(self, kind: Hashable, tip: _Tip) -> set[_Mark]:
        """Where a request must be followed to, to be continued."""
        n_messages = len(tip.numbers)
        if not n_messages:
            return set()
        sizes = np.cumsum(self._messages.size[tip.numbers])
        reached = int(np.searchsorted(sizes, self._min_shared * float(sizes[-1]))) + 1
        depths = {min(reached, n_messages), max(1, n_messages - 1) if n_messages > 2 else n_messages}
        later = without_first(tip.prefix)
        marks = {(kind, n, int(tip.prefix[n - 1]), False) for n in depths}
        answered = np.flatnonzero(self._messages.is_answer[tip.numbers])
        first = int(answered[0]) + 1 if len(answered) else n_messages + 1
        return marks | {(kind, n, int(later[n - 1]), True) for n in depths if n >= first and n > 1}

    def _continued(self, kind: Hashable, numbers: _Numbers, prefix: _U64) -> _Tip | None:
        """The lane's latest request that is continued: the one with the deepest mark, then the oldest lane's."""
        later = without_first(prefix)
        for n in range(len(numbers), 0, -1):
            for mark in ((kind, n, int(prefix[n - 1]), False), (kind, n, int(later[n - 1]), True)):
                marked = self._marks.get(mark)
                if marked is None:
                    continue
                live = [tip for tip in marked if self._tips[tip.lane] is tip]
                self._marks[mark] = live
                fit = [tip for tip in live if len(tip.numbers) < len(numbers)]
                if fit:
                    return min(fit, key=lambda tip: tip.lane)
        return None

    def _is_aside(self, kind: Hashable, numbers: _Numbers, prefix: _U64) -> bool:
        if not len(numbers):
            return False
        last = numbers[-1]
        if self._messages.asks_for_summary[last]:
            return True
        results = self._messages.results[last]
        if results < 0 or len(numbers) < 2:
            return False
        near = self._marks.get((kind, len(numbers) - 1, int(prefix[-2]), False), ())
        return any(
            self._tips[tip.lane] is tip
            and len(tip.numbers) == len(numbers)
            and self._messages.results[tip.numbers[-1]] == results
            and self._messages.size[tip.numbers[-1]] < self._messages.size[last]
            for tip in near
        )


def prefix_hashes(ids: _U64) -> _U64:
    """A hash of each beginning of a list of ids, same shape: sums of scrambled (id, position) pairs."""
    positions = np.arange(1, len(ids) + 1, dtype=np.uint64)
    return np.cumsum(_scrambled(ids ^ _scrambled(positions)), dtype=np.uint64)


def without_first(prefix: _U64) -> _U64:
    """Of hashes of beginnings those without the first element."""
    return prefix - prefix[:1]


def n_equal(left: _U64, right: _U64) -> int:
    """Length of the common beginning of two lists, given hashes of their beginnings."""
    n = min(len(left), len(right))
    differs = np.flatnonzero(left[:n] != right[:n])
    return int(differs[0]) if len(differs) else n


def _scrambled(values: _U64) -> _U64:
    """The finaliser of splitmix64, which spreads every bit over all others."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
