"""State of a running conversation: the user, the session, and each agent's prompt as it grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kv_pipeline.demo.prompt_cache import Position, Prompt, next_position
from kv_pipeline.demo.prompts import Instructions
from kv_pipeline.demo.request_log import RequestLog
from kv_pipeline.demo.transcripts import Transcript
from kv_pipeline.demo.truth import AgentLedger, ConversationLedger
from kv_pipeline.demo.wire import Message

NO_REQUEST_ID = "req_011" + "0" * 21


@dataclass(frozen=True, slots=True)
class User:
    """One user of the demo.

    Attributes:
        name: Folder name.
        profile: Which plans they follow; begins with the proxy generation.
        lifetime: Cache lifetime of main conversations, "5m" or "1h".
        utc_offset_hours: Of the machine that the proxy runs on.
    """

    name: str
    profile: str
    lifetime: str
    utc_offset_hours: int

    @property
    def generation(self) -> str:
        """The proxy generation, "fixed" or "older"."""
        return self.profile.split("-")[0]

    @property
    def cwd(self) -> str:
        """Working directory of the client."""
        return f"/home/{self.name}/harbour"

    @property
    def project(self) -> str:
        """The folder name the client derives from the working directory."""
        return self.cwd.replace("/", "-")


@dataclass(slots=True)
class Session:
    """One conversation while it runs."""

    user: User
    project_folder: Path
    session_id: str
    ledger: ConversationLedger
    rng: Random
    version_suffix: str
    prompt_id: str = ""


@dataclass(slots=True)
class AgentRun:
    """One agent while it runs.

    Attributes:
        session: The conversation it belongs to.
        ledger: Its tally.
        instructions: Tools and system prompt.
        model: Model id.
        lifetime: Of the cache entries it asks for.
        transcript: Where its client writes.
        now_ms: Its place in simulated time.
        task: What it was asked by its parent; empty for the main agent.
        depth: How many agents stand above it.
        awaits_prompt: Whether the next turn begins with a user's message.
        has_surroundings: Whether the client told it about its environment already (newer client).
        last_request_id: Of its last answered request.
        tool_uses: Tool calls so far.
        messages: The messages so far.
        positions: The cacheable prefixes so far, instructions included.
        request_log: What its client noted of its requests; None if it notes none.
        request_ref: Id of its latest request there.
        uuid_by_use: Uuid of the transcript record that holds an unanswered tool_use, by its id.
    """

    session: Session
    ledger: AgentLedger
    instructions: Instructions
    model: str
    lifetime: str
    transcript: Transcript
    now_ms: int
    task: str = ""
    depth: int = 0
    awaits_prompt: bool = True
    has_surroundings: bool = False
    last_request_id: str = NO_REQUEST_ID
    tool_uses: int = 0
    messages: list[Message] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    request_log: RequestLog | None = None
    request_ref: str | None = None
    uuid_by_use: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reset([])

    @property
    def is_main(self) -> bool:
        """Whether it is the conversation's main agent."""
        return self.ledger.agent_id is None

    def add(self, *messages: Message) -> None:
        """Append messages to the prompt."""
        for message in messages:
            self.messages.append(message)
            for block in message.blocks:
                text = f"{message.role} {block.wire}"
                self.positions.append(next_position(self.positions[-1], text, block.tokens))

    def reset(self, messages: list[Message]) -> None:
        """Begin the prompt anew with these messages."""
        self.messages = []
        self.positions = list(self.instructions.positions)
        self.add(*messages)

    def prompt(self, marked: set[int]) -> Prompt:
        """The prompt with breakpoints on both system blocks and at the end of the `marked` messages.

        Without any marked message it has no breakpoint at all.
        """
        if not marked:
            return Prompt(self.model, self.positions, {})
        end = len(self.positions) - 1
        last_system = len(self.instructions.positions) - 1
        marks = {last_system - 1: self.lifetime, last_system: self.lifetime}
        for index in range(len(self.messages) - 1, min(marked) - 1, -1):
            if index in marked:
                marks[end] = self.lifetime
            end -= len(self.messages[index].blocks)
        return Prompt(self.model, self.positions, marks)

    def messages_json(self, marked: set[int]) -> str:
        """The messages as the body carries them."""
        parts = [m.marked(self.lifetime) if i in marked else m.plain for i, m in enumerate(self.messages)]
        return f"[{','.join(parts)}]"
