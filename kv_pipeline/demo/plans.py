"""What happens in each conversation: hand-written plans for the rare cases, ordinary ones for bulk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from random import Random
from typing import Literal

from kv_pipeline.demo.size import MOST_CONTEXT_TOKENS, DemoSize

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
_LENGTH_SIGMA = 0.8
_PROMPT_EVERY = 7
"""An ordinary conversation gets an answer, and then a new prompt, after about so many turns."""


class Event(Enum):
    """What can happen between two turns of the main agent."""

    COMPACT = auto()
    ROTATE_DATABASE = auto()
    RESUME = auto()


@dataclass(frozen=True, slots=True)
class Turn:
    """One request and what follows from its reply.

    Attributes:
        reply: Calls ordinary tools, starts sub-agents, or answers the user.
        children: The sub-agents it starts.
        pause_ms: Idle time before it, beyond the usual.
        failures: Attempts refused with status 529 before it.
        is_aborted: Whether a first attempt breaks off in mid-stream.
        replays: How often the older proxy's client repeats it without streaming.
        prompt: What the user's message holds, should the turn begin with one.
        calls: How many tools it calls, 0 for a few.
        has_notice: Whether the client puts a message of role system behind its tool results.
    """

    reply: Literal["tools", "agents", "answer"] = "tools"
    children: tuple[Child, ...] = ()
    pause_ms: int = 0
    failures: int = 0
    is_aborted: bool = False
    replays: int = 1
    prompt: Literal["plain", "image", "unusual", "special"] = "plain"
    has_notice: bool = False
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Child:
    """A sub-agent: its type and its turns, the last of which answers."""

    kind: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversation.

    Attributes:
        steps: Turns and events of the main agent.
        starts_after_ms: When it begins, from the start of the landing folder's time.
        warmups: One-request agents that no tool call names (older client).
        side_requests: Title requests on a small model (older client).
    """

    steps: tuple[Turn | Event, ...]
    starts_after_ms: int = 0
    warmups: int = 0
    side_requests: int = 0
    turns: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", sum(_turns_in(step) for step in self.steps) + self.warmups)


def _turns_in(step: Turn | Event) -> int:
    if isinstance(step, Event):
        return 0
    return 1 + sum(_turns_in(turn) for child in step.children for turn in child.turns)


_WORK, _ANSWER = Turn(), Turn("answer")
_LOOK_AROUND = Child("Explore", (_WORK, _WORK, _ANSWER))
_NESTING = Child("general-purpose", (_WORK, Turn("agents", (Child("Explore", (_WORK, _ANSWER)),)), _ANSWER))
_FORK = Child("fork", (_WORK, _ANSWER))

_AGENT_TREE = Plan(
    (
        Turn(prompt="image"),
        Turn("agents", (_LOOK_AROUND, _NESTING, _FORK)),
        Turn(failures=2),
        Turn("answer"),
        Turn("answer", pause_ms=7 * MINUTE_MS),
    )
)
_ROTATED_AND_COMPACTED = Plan(
    (
        Turn(prompt="special", has_notice=True),
        _WORK,
        _ANSWER,
        Event.ROTATE_DATABASE,
        Turn(pause_ms=90_000),
        _ANSWER,
        Event.COMPACT,
        Turn(pause_ms=20_000),
        _ANSWER,
    ),
    starts_after_ms=15 * MINUTE_MS,
)
_HOUR_LIFETIME = Plan(
    (
        Turn(prompt="unusual"),
        Turn(is_aborted=True),
        _ANSWER,
        Turn(pause_ms=20 * MINUTE_MS),
        Turn("answer", failures=1),
        Event.RESUME,
        Turn(pause_ms=70 * MINUTE_MS),
        _ANSWER,
    )
)
_OUT_OF_LOOK_BACK = Plan((Turn(has_notice=True), Turn(calls=24), _ANSWER), starts_after_ms=3 * MINUTE_MS)
_TWINS = Plan(
    (
        _WORK,
        Turn("agents", (_LOOK_AROUND, Child("general-purpose", (_WORK, _ANSWER)))),
        Turn(replays=2),
        _ANSWER,
        Event.RESUME,
        Turn(pause_ms=8 * MINUTE_MS),
        _ANSWER,
    ),
    warmups=2,
    side_requests=1,
)
_TWINS_SHORT = Plan(
    (Turn(prompt="unusual"), Turn(replays=2), _ANSWER, Turn("answer", pause_ms=65 * MINUTE_MS)),
    starts_after_ms=2 * MINUTE_MS,
    warmups=1,
    side_requests=2,
)
_PLANTED = {
    "fixed-5m": (_AGENT_TREE, _ROTATED_AND_COMPACTED),
    "fixed-1h": (_HOUR_LIFETIME, _OUT_OF_LOOK_BACK),
    "older-5m": (_TWINS, _TWINS_SHORT),
}


def plans_of(size: DemoSize, profile: str, rng: Random) -> list[Plan]:
    """The plans of one user's conversations."""
    planted = list(_PLANTED[profile][: size.conversations]) if size.has_plants else []
    numbers = range(len(planted), size.conversations)
    ordinary = [_ordinary(size, number, rng, has_extras=profile.startswith("older")) for number in numbers]
    return planted + ordinary


def _ordinary(size: DemoSize, number: int, rng: Random, *, has_extras: bool) -> Plan:
    """A conversation of `size.turns` main turns with an answer now and then, idle gaps and one sub-agent."""
    most_turns = max(2, (MOST_CONTEXT_TOKENS - size.tools_tokens - size.system_tokens) // size.turn_tokens)
    n_turns = _varied(rng, size.turns) if size.is_varied else size.turns
    if size.is_varied and has_extras:
        n_turns = min(n_turns, most_turns)
    turns = [_ordinary_turn(rng, is_last=index == n_turns - 1) for index in range(n_turns)]
    if n_turns > 2 * _PROMPT_EVERY:
        middle = n_turns // 2
        helper = Child("Explore", (*[_WORK] * (n_turns // 10), _ANSWER))
        turns[middle] = replace(turns[middle], reply="agents", children=(helper,))
    steps = _compacted(turns, most_turns) if size.is_varied else tuple(turns)
    extras = int(has_extras)
    return Plan(steps, number * 40 * MINUTE_MS, warmups=extras, side_requests=extras)


def _varied(rng: Random, mean_turns: int) -> int:
    """A length from a log-normal distribution with this mean: half are under 0.73 of it, one in fifty over 4 times."""
    return max(2, round(mean_turns * rng.lognormvariate(-(_LENGTH_SIGMA**2) / 2, _LENGTH_SIGMA)))


def _compacted(turns: Sequence[Turn], most_turns: int) -> tuple[Turn | Event, ...]:
    """Turns with a compaction after every so many; a prompt of the user's comes before and after it."""
    steps = list[Turn | Event]()
    for place, turn in enumerate(turns, 1):
        is_due = place % most_turns == 0 and place < len(turns)
        steps += [replace(turn, reply="answer", children=()), Event.COMPACT] if is_due else [turn]
    return tuple(steps)


def _ordinary_turn(rng: Random, *, is_last: bool) -> Turn:
    """Mostly tool work; a few failures; one pause in thirty outlives the short cache lifetime."""
    pause_ms = rng.randrange(6, 90) * MINUTE_MS if rng.random() < 1 / 30 else 0
    failures = int(rng.random() < 1 / 40)
    is_answer = is_last or rng.random() < 1 / _PROMPT_EVERY
    return Turn("answer" if is_answer else "tools", pause_ms=pause_ms, failures=failures)
