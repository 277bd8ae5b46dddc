"""Which requests continue which, told by their messages alone.

A conversation's requests carry its whole history, so one that begins with all the messages of an earlier one continues
it. Such a chain of requests is a *lane*:

* Lanes never mix models, tools or system prompts.
* A request continues the lane whose latest request it has the longest beginning in common with, if it is longer and
  has all of that request's messages but perhaps the first and the last, which clients rewrite: reminders in them come
  and go. At least one message must be the same.
* A request that repeats an earlier one message for message is a retry and in no lane.
* One that branches off earlier in a lane (the user went back, or a fork) begins a lane of its own.

Two parallel agents that were sent the same prompt can't be told apart, nor can a fork from the thread it continues.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_U64 = npt.NDArray[np.uint64]


def find_lanes(kinds: Sequence[Hashable], messages: Sequence[_U64]) -> list[int | None]:
    """The lane of each request.

    Costs a few operations a request and new message, besides hashing, which arrays do.

    Args:
        kinds: What must be equal within a lane: model, tools, system prompt.
        messages: Ids of each request's messages, shape (n_messages,); requests in the order they were sent.

    Returns:
        Lanes numbered from 0 as they begin; None for a retry.
    """
    finder = _Finder()
    return [finder.place(kind, prefix_hashes(ids)) for kind, ids in zip(kinds, messages, strict=True)]


_Beginning = tuple[Hashable, int, int, bool]
"""A kind, a number of messages, their hash, and whether that is without the first."""


class _Tip(NamedTuple):
    """A request that was its lane's latest when it came."""

    lane: int
    n_messages: int


class _Finder:
    """Places requests one by one.

    `_whole` knows which request ends with a beginning, `_almost` the latest that has one message more.
    """

    def __init__(self) -> None:
        self._tips: list[_Tip] = []
        self._whole: dict[_Beginning, _Tip] = {}
        self._almost: dict[_Beginning, _Tip] = {}

    def place(self, kind: Hashable, prefix: _U64) -> int | None:
        n_messages = len(prefix)
        later = prefix - prefix[:1]
        whole, almost = (list(_beginnings(kind, n, prefix, later)) for n in (n_messages, n_messages - 1))
        if whole and whole[0] in self._whole:
            return None
        lane = self._continued(kind, prefix, later)
        if lane is None:
            lane = len(self._tips)
            self._tips.append(_Tip(lane, 0))
        tip = self._tips[lane] = _Tip(lane, n_messages)
        self._whole.update(dict.fromkeys(whole, tip))
        self._almost.update(dict.fromkeys(almost, tip))
        return lane

    def _continued(self, kind: Hashable, prefix: _U64, later: _U64) -> int | None:
        """The lane whose latest request has the longest beginning in common; None if an older one has."""
        for n in range(len(prefix), 0, -1):
            beginnings = _beginnings(kind, n, prefix, later)
            known = (known.get(beginning) for beginning in beginnings for known in (self._whole, self._almost))
            ends = [end for end in known if end is not None]
            if ends:
                fit = (end.lane for end in ends if self._tips[end.lane] is end and end.n_messages < len(prefix))
                return next(fit, None)
        return None


def _beginnings(kind: Hashable, n_messages: int, prefix: _U64, later: _U64) -> Iterator[_Beginning]:
    """What the first n messages are known by: with, and if there are others without, the first."""
    if n_messages > 0:
        yield kind, n_messages, int(prefix[n_messages - 1]), False
    if n_messages > 1:
        yield kind, n_messages, int(later[n_messages - 1]), True


def prefix_hashes(ids: _U64) -> _U64:
    """A hash of each beginning of a list of ids, same shape: sums of scrambled (id, position) pairs."""
    positions = np.arange(1, len(ids) + 1, dtype=np.uint64)
    return np.cumsum(_scrambled(ids ^ _scrambled(positions)), dtype=np.uint64)


def _scrambled(values: _U64) -> _U64:
    """The finaliser of splitmix64, which spreads every bit over all others."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
