"""How large a generated landing folder is, and the sizes the project uses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoSize:
    """The dimensions of a generated landing folder. Token counts are targets in cl100k_base tokens.

    Attributes:
        users: How many users; every third one writes through the older proxy.
        conversations: Conversations of each user.
        turns: Requests of the main agent in an ordinary conversation.
        tools_tokens: Size of the main agent's tool definitions.
        system_tokens: Size of the main agent's system prompt.
        context_tokens: Context that an ordinary conversation reaches at its last turn.
        has_plants: Whether the first two conversations of a user follow the hand-written plans, which hold
            every rare case once (sub-agents, compaction, resumption, failures, ...).
        is_varied: Whether ordinary conversations differ in length as real ones do: most are short, a few very long,
            `turns` on average. Those that outgrow `MOST_CONTEXT_TOKENS` are compacted, or end with the older client.
    """

    users: int = 3
    conversations: int = 2
    turns: int = 6
    tools_tokens: int = 900
    system_tokens: int = 450
    context_tokens: int = 3_500
    has_plants: bool = True
    is_varied: bool = False

    @property
    def turn_tokens(self) -> int:
        """Tokens an ordinary turn adds to the context, so that the last turn reaches `context_tokens`."""
        return max(60, (self.context_tokens - self.tools_tokens - self.system_tokens) // max(1, self.turns))


MOST_CONTEXT_TOKENS = 150_000
_INSTRUCTIONS_TOKENS = 12_000, 3_000
_TURN_TOKENS = 1_000

EXAMPLE = DemoSize()
"""The committed example: every rare case once, under 1.5 MB."""

BENCHMARK = DemoSize(
    users=1,
    conversations=9,
    turns=120,
    tools_tokens=12_000,
    system_tokens=3_000,
    context_tokens=150_000,
    has_plants=False,
)
"""The load test: one growing database of about 300 MB with long contexts."""


def fleet(users: int = 9, conversations: int = 10, turns: int = 40) -> DemoSize:
    """Users with a database each, of realistic shape and any size, and the one with a log that every demo has.

    A conversation of 40 turns is about 5 MB of database, since each request repeats what was said before.

    Args:
        users: How many.
        conversations: Conversations of each user.
        turns: Requests of an ordinary conversation's main agent, on average.
    """
    tools_tokens, system_tokens = _INSTRUCTIONS_TOKENS
    return DemoSize(
        users=users,
        conversations=conversations,
        turns=turns,
        tools_tokens=tools_tokens,
        system_tokens=system_tokens,
        context_tokens=tools_tokens + system_tokens + turns * _TURN_TOKENS,
        is_varied=True,
    )
