"""Requests before the length of what is unseen in them is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from kv_pipeline.schemas.requests import APPROXIMATE
from kv_pipeline.sources.transcript_requests.answers import Gathered

FIVE_MINUTES: Final = "5m"


class Wanted(NamedTuple):
    """An answer whose request is to be found.

    Attributes:
        session_id: The session that it counts for.
        agent_id: The agent that received it.
        agent_type: What kind of agent that is: decides tools and system prompt.
        may_be_approximate: Whether a request that can't be verified is better than none.
    """

    session_id: str
    agent_id: str
    agent_type: str
    may_be_approximate: bool = True


@dataclass(slots=True)
class Seen:
    """What a client's `prompt_snapshot` attachments show of tools and system prompt.

    Attributes:
        system: System blocks as raw JSON.
        tools: Tools as raw JSON; None until a snapshot has some.
    """

    system: list[bytes] = field(default_factory=list)
    tools: list[bytes] | None = None


@dataclass(slots=True)
class Draft:
    """A request.

    Attributes:
        answer: What it was answered.
        wanted: Where it belongs.
        requested_at: When it was sent.
        messages: Segments of its messages.
        breakpoints: As in RAW_REQUESTS, those of tools and system only if they are known.
        params: Its parameters; empty where they are not recorded.
        tools: Segment of the tools, if they are known whole.
        system: Segment of the system prompt, if it is known whole.
        seen: What is known of tools and system prompt otherwise; None if these two say it all.
        exactness: One of `EXACTNESS`.
    """

    answer: Gathered
    wanted: Wanted
    requested_at: datetime
    messages: list[int]
    breakpoints: list[dict[str, object]]
    params: Mapping[str, Any] = field(default_factory=dict)
    tools: int | None = None
    system: int | None = None
    seen: Seen | None = None
    exactness: str = APPROXIMATE

    @property
    def ttl(self) -> str:
        """Lifetime that assumed breakpoints ask for."""
        return self.answer.ttl or FIVE_MINUTES


def ask_for_an_hour(drafts: Sequence[Draft]) -> None:
    """Let assumed breakpoints ask for an hour where the client noted no lifetime, but its agent was billed for one."""
    billed = {_agent(draft) for draft in drafts if draft.answer.answer(draft.requested_at).usage.cache_write_1h_tokens}
    for draft in drafts:
        if draft.exactness == APPROXIMATE and draft.answer.ttl is None and _agent(draft) in billed:
            draft.answer.ttl = "1h"
            draft.breakpoints = [{**marked, "ttl": "1h"} for marked in draft.breakpoints]


def _agent(draft: Draft) -> tuple[str, str]:
    return draft.wanted.session_id, draft.wanted.agent_id
