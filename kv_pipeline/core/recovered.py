"""Conversations that no transcript records, recovered from what their requests say.

Threads (`core.threads`) are agents. A conversation is a session, if requests name one, else a thread that nobody
started, with all that it started:

* Of a session, the thread that takes the longest from first to last request, of those with tools if any has some, is
  the main thread: agents end before those who wait for them. Threads with its model and tools that lie wholly before
  or after it are more of it.
* Without sessions each thread that nobody started is a main thread, unless it is a sub-agent's by what it says, or
  has the tools and system prompt of those that calls started, and not of those that called. Such agents, and warm-ups,
  are kept below the main thread that was at work, or was next to begin.
* An agent's type is the one that its call names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from kv_pipeline.core.lanes import DEFAULT_MIN_SHARED, Messages, find_lanes
from kv_pipeline.core.threads import Said, Sent, Thread, find_threads
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.transcripts import TRANSCRIPT_AGENTS, TRANSCRIPT_ANSWERS, TRANSCRIPT_COMPACTIONS

MAIN_AGENT: Final = "main"
WARMUP_TYPE: Final = "warmup"
_ORDER: Final = ("requested_at_utc", "n_messages", "database_id", "row_id")


class RecoveryOptions(NamedTuple):
    """How conversations are recovered.

    Attributes:
        min_shared: Share of a request that the next must begin with, 0 to 1.
        min_prefix_tokens: Least length of a main thread's tools and system prompt, at four characters a token; what
            is shorter is other clients' traffic.
    """

    min_shared: float = DEFAULT_MIN_SHARED
    min_prefix_tokens: int = 0


class Recovered(NamedTuple):
    """What transcripts would say: frames of `TRANSCRIPT_ANSWERS`, `TRANSCRIPT_AGENTS` and `TRANSCRIPT_COMPACTIONS`.

    Attributes:
        answers: Whose answer each message is.
        agents: Agents of each session.
        compactions: Where an agent's context was compacted.
        n_short: Conversations left out for `min_prefix_tokens`.
    """

    answers: pl.DataFrame
    agents: pl.DataFrame
    compactions: pl.DataFrame
    n_short: int = 0


def nothing_recovered() -> Recovered:
    """No conversation."""
    models = (TRANSCRIPT_ANSWERS, TRANSCRIPT_AGENTS, TRANSCRIPT_COMPACTIONS)
    answers, agents, compactions = (pl.DataFrame(schema=polars_schema(model)) for model in models)
    return Recovered(answers, agents, compactions)


class _Agent(NamedTuple):
    """A thread's place in a conversation."""

    session_id: str
    agent_id: str
    threads: list[int]


def recover(requests: pl.DataFrame, facts: pl.DataFrame, options: RecoveryOptions | None = None) -> Recovered:
    """Agents of each session, and whose answer each message is.

    Args:
        requests: One row per answered turn, in any order: session_id and named_agent (null if it names none),
            database_id, row_id, requested_at_utc, model, message_id, tools_id and system_id (u64, null without),
            is_subagent, prefix_tokens, is_indexed (whether a transcript names it: of its conversation nothing is
            recovered), messages (list of row numbers of `facts`).
        facts: Frame of `MESSAGE_FACTS`.
        options: How.
    """
    options = options or RecoveryOptions()
    rows = requests.with_columns(n_messages=pl.col("messages").list.len()).sort(_ORDER)
    sent, messages = _sent(rows), _messages(facts)
    scopes: list[Hashable] = [one.scope for one in sent]
    kinds: list[Hashable] = [one[1:-2] for one in sent]
    lanes = find_lanes(scopes, kinds, [one.numbers for one in sent], messages, options.min_shared)
    threads = find_threads(lanes, sent, _said(facts)).threads
    placer = _Placer(rows, sent, threads)
    agents = placer.agents()
    indexed = {agent.session_id for agent in agents if placer.is_indexed(agent)}
    short = {agent.session_id for agent in agents if placer.is_short(agent, options.min_prefix_tokens)} - indexed
    left_out = indexed | short
    return _frames(rows, threads, [agent for agent in agents if agent.session_id not in left_out], len(short))


def _sent(rows: pl.DataFrame) -> list[Sent]:
    columns = rows.select(
        pl.col("session_id").fill_null(""),
        "named_agent",
        "model",
        "tools_id",
        "system_id",
        "is_subagent",
        "requested_at_utc",
    )
    return [
        Sent._make((*row, numbers)) for row, numbers in zip(columns.iter_rows(), _arrays(rows["messages"]), strict=True)
    ]


def _arrays(numbers: pl.Series) -> list[np.ndarray[tuple[int], np.dtype[np.uint32]]]:
    flat = numbers.list.explode(empty_as_null=False).to_numpy().astype(np.uint32, copy=False)
    return np.split(flat, np.cumsum(numbers.list.len().to_numpy())[:-1]) if len(numbers) else []


def _messages(facts: pl.DataFrame) -> Messages:
    ids = pl.col("results").list.sort().list.join(",")
    results = facts.select(pl.when(ids != "").then(ids.rank("dense")).otherwise(-1).cast(pl.Int64).alias("results"))
    return Messages(
        identity=facts["identity"].to_numpy(),
        size=facts["n_characters"].cast(pl.Int64).to_numpy(),
        is_answer=_flags(facts["is_assistant"]),
        is_fork=_flags(facts["is_fork"]),
        results=results["results"].to_numpy(),
        asks_for_summary=_flags(facts["asks_for_summary"]),
    )


def _flags(column: pl.Series) -> npt.NDArray[np.bool_]:
    return column.to_numpy().astype(np.bool_)


def _said(facts: pl.DataFrame) -> Said:
    columns = ("identity", "is_assistant", "is_warmup", "is_continuation", "texts", "results", "calls")
    return Said(*(facts[name].to_list() for name in columns))


class _Placer:
    """Finds the conversation of each thread."""

    def __init__(self, rows: pl.DataFrame, sent: Sequence[Sent], threads: dict[int, Thread]) -> None:
        self._sent, self._threads = sent, threads
        self._times = [one.at for one in sent]
        self._message_ids: list[str] = rows["message_id"].to_list()
        self._prefix_tokens: list[int] = rows["prefix_tokens"].to_list()
        self._indexed: set[int] = set(rows["is_indexed"].arg_true())
        called = [thread for thread in threads.values() if thread.call is not None and not thread.is_fork]
        callers = [threads[thread.parent] for thread in called if thread.parent in threads]
        self._started = {self._head(thread) for thread in called} - {
            self._head(caller) for caller in callers if caller.parent is None
        }

    def agents(self) -> list[_Agent]:
        """Agents by conversation, main threads first, others as they begin."""
        mains = self._mains()
        main_of = {number: main for main, group in mains.items() for number in group}
        members: dict[int, list[int]] = {main: [] for main in mains}
        for number in self._threads:
            if number not in main_of:
                members[self._root(number, main_of)].append(number)
        found = []
        for main, group in mains.items():
            session_id = self._sent[self._threads[main].first].scope or self._name(main)
            found.append(_Agent(session_id, MAIN_AGENT, group))
            others = sorted(members[main], key=lambda number: self._threads[number].first)
            found += [_Agent(session_id, self._agent_name(one, n), [one]) for n, one in enumerate(others, start=1)]
        return found

    def is_short(self, agent: _Agent, min_prefix_tokens: int) -> bool:
        """Whether it is a main thread whose tools and system prompt are too short."""
        first = self._threads[agent.threads[0]].first
        return agent.agent_id == MAIN_AGENT and self._prefix_tokens[first] < min_prefix_tokens

    def is_indexed(self, agent: _Agent) -> bool:
        """Whether a transcript names one of its answers."""
        return any(not self._indexed.isdisjoint(self._threads[number].requests) for number in agent.threads)

    def _name(self, main: int) -> str:
        """Stays the same while the conversation grows, wherever its rows stand."""
        first = self._message_ids[self._threads[main].first]
        return "recovered-" + hashlib.blake2b(first.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def _agent_name(self, number: int, place: int) -> str:
        return self._sent[self._threads[number].first].named_agent or f"agent-{place}"

    def _mains(self) -> dict[int, list[int]]:
        """Main threads, each with all threads that are it."""
        by_scope: dict[str, list[int]] = {}
        for number, thread in self._threads.items():
            by_scope.setdefault(self._sent[thread.first].scope, []).append(number)
        unnamed = by_scope.pop("", [])
        mains = {number: [number] for number in unnamed if self._is_main(self._threads[number])}
        for numbers in by_scope.values():
            group = self._main_of_session(numbers)
            mains[min(group)] = sorted(group)
        return mains or {number: [number] for number in unnamed[:1]}

    def _is_main(self, thread: Thread) -> bool:
        is_agent = thread.parent is not None or thread.is_subagent or thread.is_warmup
        return not is_agent and self._head(thread) not in self._started

    def _head(self, thread: Thread) -> tuple[int | None, int | None]:
        first = self._sent[thread.first]
        return first.tools_id, first.system_id

    def _main_of_session(self, numbers: list[int]) -> set[int]:
        free = [n for n in numbers if self._is_nobodys(self._threads[n])] or numbers
        longest = max(free, key=self._size)
        sort = self._sort(longest)
        same = [n for n in free if self._sort(n) == sort and sort[1] is not None]
        group, first, last = {longest}, self._threads[longest].first, self._threads[longest].last
        for n in sorted(same, key=lambda n: self._threads[n].first):
            if self._threads[n].first > last:
                group.add(n)
                last = self._threads[n].last
        for n in sorted(same, key=lambda n: self._threads[n].last, reverse=True):
            if self._threads[n].last < first:
                group.add(n)
                first = self._threads[n].first
        return group

    def _is_nobodys(self, thread: Thread) -> bool:
        is_agent = thread.call is not None or thread.is_subagent or thread.is_warmup
        return not is_agent and self._sent[thread.first].named_agent is None

    def _sort(self, number: int) -> tuple[str, int | None]:
        first = self._sent[self._threads[number].first]
        return first.model, first.tools_id

    def _size(self, number: int) -> tuple[bool, float, int]:
        thread = self._threads[number]
        duration = (self._times[thread.last] - self._times[thread.first]).total_seconds()
        return self._sent[thread.first].tools_id is not None, duration, len(thread.requests)

    def _root(self, number: int, main_of: dict[int, int]) -> int:
        """The main thread above a thread; a chain of parents that leads nowhere counts as none."""
        scope = self._sent[self._threads[number].first].scope
        seen, above = {number}, self._threads[number].parent
        while above is not None and above not in seen:
            if above in main_of:
                return main_of[above]
            seen.add(above)
            above = self._threads[above].parent if above in self._threads else None
        mains = [n for n in main_of if self._sent[self._threads[n].first].scope == scope]
        return main_of[min(mains, key=lambda main: self._distance(number, main))]

    def _distance(self, number: int, main: int) -> tuple[float, int]:
        """From a thread to a main thread: none if that was at work, the latest first; else the seconds in between."""
        own, other = self._threads[number], self._threads[main]
        begins, start, end = self._times[own.first], self._times[other.first], self._times[other.last]
        if other.first < own.first and begins <= end:
            return 0.0, -other.first
        return abs((start if begins <= start else end).timestamp() - begins.timestamp()), other.first


def _frames(rows: pl.DataFrame, threads: dict[int, Thread], agents: list[_Agent], n_short: int) -> Recovered:
    agent_of = {number: agent.agent_id for agent in agents for number in agent.threads}
    placed = [(place, agent.session_id, agent.agent_id) for agent in agents for n in agent.threads
              for place in threads[n].requests]  # fmt: skip
    compacted = {place for agent in agents for n in agent.threads for place in threads[n].compacted}
    schema = {"place": pl.UInt32, "session_id": pl.String, "agent_id": pl.String}
    requests = (
        rows.drop("session_id")
        .with_row_index("place")
        .join(pl.DataFrame(placed, schema=schema, orient="row"), on="place", maintain_order="left")
        .unique(["session_id", "agent_id", "message_id"], keep="first", maintain_order=True)
        .with_columns(
            line=2 * pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("session_id", "agent_id"),
            answered_at=pl.col("requested_at_utc").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
            cache_miss_reason=pl.lit(None, pl.String),  # the recording itself says it, in raw_requests
            cache_missed_input_tokens=pl.lit(None, pl.Int64),
            is_compacted=pl.col("place").is_in(sorted(compacted)),
        )
    )
    return Recovered(
        requests.select(polars_schema(TRANSCRIPT_ANSWERS).names()),
        _agents(threads, agents, agent_of),
        _compactions(requests.filter("is_compacted")),
        n_short,
    )


def _agents(threads: dict[int, Thread], agents: list[_Agent], agent_of: dict[int, str]) -> pl.DataFrame:
    parents: dict[tuple[str, str], str | None] = {}
    rows: list[dict[str, object]] = []
    for agent in agents:
        thread = threads[agent.threads[0]]
        is_main = agent.agent_id == MAIN_AGENT
        parent = None if is_main else agent_of.get(-1 if thread.parent is None else thread.parent, MAIN_AGENT)
        parents[agent.session_id, agent.agent_id] = parent
        known = thread.call if not is_main else None
        kind = known.subagent_type if known else None
        rows.append({
            "session_id": agent.session_id,
            "agent_id": agent.agent_id,
            "parent_agent_id": parent,
            "subagent_type": None if is_main else kind or (WARMUP_TYPE if thread.is_warmup else None),
            "link": "main" if is_main else "prompt" if known else "none",
            "tool_use_id": known.tool_use_id if known else None,
            "is_fork": thread.is_fork and not is_main,
        })  # fmt: skip
    for row in rows:
        row["depth"] = _depth(str(row["session_id"]), str(row["agent_id"]), parents)
    return pl.DataFrame(rows, schema=polars_schema(TRANSCRIPT_AGENTS))


def _depth(session_id: str, agent_id: str, parents: dict[tuple[str, str], str | None]) -> int:
    depth, seen, parent = 0, {agent_id}, parents[session_id, agent_id]
    while parent is not None and parent not in seen:
        seen.add(parent)
        depth, parent = depth + 1, parents.get((session_id, parent))
    return depth


def _compactions(first_after: pl.DataFrame) -> pl.DataFrame:
    return first_after.select(
        "session_id", "agent_id", pl.col("line") - 1, compacted_at="answered_at", trigger=pl.lit(None, pl.String),
        pre_tokens=pl.lit(None, pl.Int64), post_tokens=pl.lit(None, pl.Int64),
    ).select(polars_schema(TRANSCRIPT_COMPACTIONS).names())  # fmt: skip
