"""What a generated landing folder holds: the answers that a pipeline run over it is compared with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

FAILED_ATTEMPT = "failed_attempt"
ABORTED_STREAM = "aborted_stream"
REPLAY_TWIN = "replay_twin"
SIDE_REQUEST = "side_request"
COMPACTION = "compaction"


@dataclass(frozen=True, slots=True)
class AgentTruth:
    """One agent of a conversation.

    Attributes:
        agent_id: Id in the transcript's file name, None for the main agent.
        kind: Agent type as the client calls it; "main" and "Warmup" are ours.
        parent_id: The agent that started it; None when that is the main agent, or nobody.
        is_linked: Whether a tool call names it. Warm-ups are named by none.
        message_ids: Id of the answer to each of its turns, in order, as transcripts name it. A turn is one
            request, however often the proxy recorded it.
        billed_ids: Id of the answer that paid for the cache, turn by turn; a streaming twin's where there is
            one.
    """

    agent_id: str | None
    kind: str
    parent_id: str | None
    is_linked: bool
    message_ids: tuple[str, ...]
    billed_ids: tuple[str, ...]

    @property
    def turns(self) -> int:
        """Requests of its own."""
        return len(self.message_ids)


@dataclass(frozen=True, slots=True)
class ConversationTruth:
    """One conversation.

    Attributes:
        conversation_id: Its first session id.
        session_ids: All session ids, in order: more than one when it was resumed in a new session file.
        user: Folder name of the user.
        generation: "fixed" or "older", the proxy that recorded it.
        databases: Database files with a row of it, relative to the landing folder, in order of first use.
        agents: Main agent first, then by start.
        unindexed: Rows that are no turn, by reason. Every row is either a turn or counted here, once:
            an older proxy's turn is one turn and one or more `replay_twin` rows, and so are side requests.
    """

    conversation_id: str
    session_ids: tuple[str, ...]
    user: str
    generation: str
    databases: tuple[str, ...]
    agents: tuple[AgentTruth, ...]
    unindexed: dict[str, int]

    @property
    def turns(self) -> int:
        """Turns of all its agents."""
        return sum(agent.turns for agent in self.agents)

    @property
    def rows(self) -> int:
        """Database rows it caused."""
        return self.turns + sum(self.unindexed.values())


@dataclass(frozen=True, slots=True)
class DemoTruth:
    """The whole landing folder.

    Attributes:
        conversations: By user, then by start.
        databases: Row count by database file, relative to the landing folder.
        logs: Line count by claude-trace log, likewise; their conversations are not among those above.
    """

    conversations: tuple[ConversationTruth, ...]
    databases: dict[str, int]
    logs: dict[str, int] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """Turns of all conversations."""
        return sum(conversation.turns for conversation in self.conversations)

    @property
    def unindexed(self) -> dict[str, int]:
        """Rows that are no turn, by reason, over all conversations."""
        total: Counter[str] = Counter()
        for conversation in self.conversations:
            total.update(conversation.unindexed)
        return dict(sorted(total.items()))


@dataclass(slots=True)
class AgentLedger:
    """Mutable tally behind one `AgentTruth`."""

    agent_id: str | None
    kind: str
    parent_id: str | None = None
    is_linked: bool = True
    message_ids: list[str] = field(default_factory=list)
    billed_ids: list[str] = field(default_factory=list)

    def seal(self) -> AgentTruth:
        """The finished, immutable record."""
        ids = tuple(self.message_ids), tuple(self.billed_ids)
        return AgentTruth(self.agent_id, self.kind, self.parent_id, self.is_linked, *ids)


@dataclass(slots=True)
class ConversationLedger:
    """Mutable tally behind one `ConversationTruth`."""

    user: str
    generation: str
    session_ids: list[str] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    agents: list[AgentLedger] = field(default_factory=list)
    unindexed: Counter[str] = field(default_factory=Counter)

    def seal(self) -> ConversationTruth:
        """The finished, immutable record."""
        return ConversationTruth(
            conversation_id=self.session_ids[0],
            session_ids=tuple(self.session_ids),
            user=self.user,
            generation=self.generation,
            databases=tuple(f"{self.user}/{name}" for name in self.databases),
            agents=tuple(agent.seal() for agent in self.agents),
            unindexed=dict(sorted(self.unindexed.items())),
        )
