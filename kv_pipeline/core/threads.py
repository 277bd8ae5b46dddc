"""From lanes to agents: which lanes are one agent's, and who started whom.

* Lanes of one named agent are one thread. So is a lane derived from another that has ended by then: the user went back,
  changed the model, or the context was compacted. A lane that is derived from one that goes on is a fork.
* A lane that says that it continues an earlier conversation belongs to the thread with its tools that ended last.
* What was asked after the last answer that a compacted context keeps was the request for the summary: an aside.
* A thread whose first message has the prompt of a call of a sub-agent was started by it: by the latest such call that
  nobody else was started by. A fork's call is the one that its last message answers.
* A lane of one request without tools is an aside, unless it is the client's warm-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np

from kv_pipeline.core.lanes import Aside, Lane, Lanes

_MAX_SUMMARY_REQUESTS: Final = 2
"""A client asks again if the first summary is of no use."""


class Sent(NamedTuple):
    """A request as far as threads need it.

    Attributes:
        scope: Session that it names; empty if none.
        named_agent: Agent that it names.
        model: Model.
        tools_id: Identity of its tools.
        system_id: Identity of its system prompt.
        is_subagent: Whether it says that a sub-agent sent it.
        at: When it was sent.
        numbers: Its messages.
    """

    scope: str
    named_agent: str | None
    model: str
    tools_id: int | None
    system_id: int | None
    is_subagent: bool
    at: datetime
    numbers: np.ndarray[tuple[int], np.dtype[np.uint32]]

    @property
    def opening(self) -> int | None:
        """Its first message."""
        return int(self.numbers[0]) if len(self.numbers) else None


class Said(NamedTuple):
    """Facts about messages by number, beyond those that lanes need.

    Attributes:
        identity: What tells a message from others.
        is_answer: Whether the model said it.
        is_warmup: Whether it is a warm-up's prompt.
        is_continuation: Whether it says that an earlier conversation goes on.
        texts: Digests of what a user says.
        results: Tool calls that it answers.
        calls: Calls of sub-agents: tool_use_id, prompt, subagent_type.
    """

    identity: Sequence[int]
    is_answer: Sequence[bool]
    is_warmup: Sequence[bool]
    is_continuation: Sequence[bool]
    texts: Sequence[Sequence[int]]
    results: Sequence[Sequence[str]]
    calls: Sequence[Sequence[Mapping[str, Any]]]


class Call(NamedTuple):
    """A call of a sub-agent: thread that made it, and place of the request that was answered with it."""

    thread: int
    place: int
    tool_use_id: str
    prompt: int
    subagent_type: str | None


@dataclass(slots=True)
class Thread:
    """What one agent sent.

    Attributes:
        requests: Places, in order.
        compacted: Places of the first requests after compactions.
        parent: Thread that started it.
        call: The call that did.
        is_fork: Whether it continues its parent's context.
        is_subagent: Whether it says that it is a sub-agent.
        is_warmup: Whether it is the client's warm-up.
    """

    requests: list[int] = field(default_factory=list)
    compacted: list[int] = field(default_factory=list)
    parent: int | None = None
    call: Call | None = None
    is_fork: bool = False
    is_subagent: bool = False
    is_warmup: bool = False

    @property
    def first(self) -> int:
        """Place of its first request."""
        return self.requests[0]

    @property
    def last(self) -> int:
        """Place of its last request."""
        return self.requests[-1]


class Threads(NamedTuple):
    """Threads in the order they begin, by number, and requests that are in none."""

    threads: dict[int, Thread]
    asides: dict[int, Aside]


def find_threads(lanes: Lanes, sent: Sequence[Sent], said: Said) -> Threads:
    """Join lanes into threads and tell who started whom."""
    joiner = _Joiner(lanes, sent, said)
    for number in range(len(lanes.lanes)):
        joiner.join(number)
    joiner.link()
    return Threads({number: thread for number, thread in joiner.threads.items() if thread.requests}, joiner.asides)


class _Joiner:
    def __init__(self, lanes: Lanes, sent: Sequence[Sent], said: Said) -> None:
        self._lanes, self._sent, self._said = lanes.lanes, sent, said
        self.asides = dict(lanes.asides)
        self.threads: dict[int, Thread] = {}
        self._thread_of: dict[int, int] = {}
        self._named: dict[tuple[str, str], int] = {}

    def join(self, number: int) -> None:
        """Put a lane into a thread; lanes come in the order they begin."""
        lane = self._lanes[number]
        first = self._sent[lane.requests[0]]
        opening = first.opening
        is_warmup = opening is not None and self._said.is_warmup[opening]
        if self._is_aside(lane, first) and not is_warmup:
            self.asides |= dict.fromkeys(lane.requests, Aside.SIDE)
            return
        joined = self._joined(number, lane, first)
        thread = self.threads.get(joined) or Thread(is_subagent=first.is_subagent, is_warmup=is_warmup)
        if joined in self.threads:
            self._note_compaction(thread, lane, first)
        elif lane.derived_from is not None:
            thread.parent = self._thread_of.get(lane.derived_from)
            thread.is_fork = thread.parent is not None
        self.threads[joined], self._thread_of[number] = thread, joined
        thread.requests = sorted(thread.requests + lane.requests)
        if first.named_agent is not None:
            self._named.setdefault((first.scope, first.named_agent), joined)

    def _is_aside(self, lane: Lane, first: Sent) -> bool:
        """Alone and without tools: a probe, a title, or a question about a conversation that has tools."""
        if len(lane.requests) > 1 or first.tools_id is not None:
            return False
        origin = self._lanes[lane.derived_from] if lane.derived_from is not None else None
        return len(first.numbers) <= 1 or (origin is not None and self._tools(origin) is not None)

    def _tools(self, lane: Lane) -> int | None:
        return self._sent[lane.requests[0]].tools_id

    def _joined(self, number: int, lane: Lane, first: Sent) -> int:
        """The thread that a lane belongs to: its own number if it begins one."""
        if first.named_agent is not None:
            return self._named.get((first.scope, first.named_agent), number)
        if lane.is_fork:
            return number
        if lane.derived_from is not None:
            origin = self._thread_of.get(lane.derived_from)
            return number if origin is None or not self._has_ended(origin, lane.requests[0], first) else origin
        is_continuation = first.opening is not None and self._said.is_continuation[first.opening]
        return self._ended_last(lane, first, number) if is_continuation else number

    def _has_ended(self, thread: int, place: int, first: Sent) -> bool:
        """Whether nobody continues the thread as it was after a request; the lanes that do begin earlier."""
        known = self._sent[self.threads[thread].first]
        is_same_sort = (known.is_subagent, known.named_agent) == (first.is_subagent, first.named_agent)
        return is_same_sort and self.threads[thread].last < place

    def _ended_last(self, lane: Lane, first: Sent, number: int) -> int:
        before = [
            (thread.last, key)
            for key, thread in self.threads.items()
            if self._sent[thread.first].tools_id == first.tools_id
            and self._sent[thread.first].scope == first.scope
            and self._has_ended(key, lane.requests[0], first)
        ]
        return max(before, default=(0, number))[1]

    def _note_compaction(self, thread: Thread, lane: Lane, first: Sent) -> None:
        n_before = len(self._sent[thread.last].numbers)
        if lane.n_shared or len(first.numbers) >= n_before:
            return
        thread.compacted.append(lane.requests[0])
        kept = {self._said.identity[n] for n in first.numbers.tolist() if self._said.is_answer[n]}
        for place in thread.requests[: -_MAX_SUMMARY_REQUESTS - 1 : -1]:
            if place < lane.requests[0] and kept & {self._said.identity[n] for n in self._sent[place].numbers.tolist()}:
                thread.requests.remove(place)
                self.asides[place] = Aside.SIDE

    def link(self) -> None:
        """Tell who was started by which call."""
        calls = self._calls()
        by_prompt: dict[tuple[str, int], list[Call]] = {}
        for call in calls.values():
            by_prompt.setdefault((self._sent[call.place].scope, call.prompt), []).append(call)
        for number, thread in sorted(self.threads.items(), key=lambda item: item[1].requests[:1]):
            if not thread.requests or thread.is_warmup:
                continue
            found = self._fork_call(thread, calls) if thread.is_fork else self._prompt_call(number, thread, by_prompt)
            if found is not None and found.thread != number:
                thread.parent, thread.call = found.thread, found

    def _calls(self) -> dict[str, Call]:
        """Calls by id; of a call in several threads, whose forks repeat it, that of the thread that is none."""
        found: dict[str, Call] = {}
        for number, lane in enumerate(self._lanes):
            thread = self._thread_of.get(number)
            if thread is None:
                continue
            before = lane.requests[0]
            for place, n_before in zip(lane.requests, lane.news, strict=True):
                for call in self._calls_of(self._sent[place].numbers[max(0, n_before - 1) :].tolist(), thread, before):
                    known = found.get(call.tool_use_id)
                    if known is None or (self.threads[known.thread].is_fork and not self.threads[thread].is_fork):
                        found[call.tool_use_id] = call
                before = place
        return found

    def _calls_of(self, numbers: Iterable[int], thread: int, place: int) -> Iterable[Call]:
        for number in numbers:
            for call in self._said.calls[number]:
                yield Call(thread, place, call["tool_use_id"], call["prompt"], call["subagent_type"])

    def _fork_call(self, thread: Thread, calls: Mapping[str, Call]) -> Call | None:
        numbers = self._sent[thread.first].numbers
        results = self._said.results[numbers[-1]] if len(numbers) else ()
        return next((calls[one] for one in results if one in calls), None)

    def _prompt_call(self, number: int, thread: Thread, by_prompt: Mapping[tuple[str, int], list[Call]]) -> Call | None:
        first = self._sent[thread.first]
        if first.opening is None:
            return None
        for text in self._said.texts[first.opening]:
            calls = by_prompt.get((first.scope, text), [])
            fit = [call for call in calls if self._sent[call.place].at <= first.at and call.thread != number]
            if fit:
                latest = max(fit, key=lambda call: call.place)
                calls.remove(latest)
                return latest
        return None
