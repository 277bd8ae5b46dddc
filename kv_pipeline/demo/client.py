"""What both client generations share: playing a plan, turn by turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kv_pipeline.demo.agents import AgentRun, Session, User
from kv_pipeline.demo.engine import Join, Script
from kv_pipeline.demo.plans import Child, Event, Plan, Turn
from kv_pipeline.demo.prompts import Instructions, instructions_of
from kv_pipeline.demo.proxy import Proxy, Request
from kv_pipeline.demo.replies import (
    ToolCall,
    agents_reply,
    answer_reply,
    prompt_contents,
    tool_result,
    work_reply,
)
from kv_pipeline.demo.responses import Exchange, Reply, usage_json
from kv_pipeline.demo.size import DemoSize
from kv_pipeline.demo.truth import AgentLedger, ConversationLedger
from kv_pipeline.demo.wire import Json, Message, go, text_block
from kv_pipeline.demo.wording import seeded, uuid_of

_SPAWN_STAGGER_MS = 180
_TYPING_MS = (4_000, 60_000)


@dataclass(frozen=True, slots=True)
class Report:
    """What a finished sub-agent hands back."""

    run: AgentRun
    text: str
    started_ms: int
    exchange: Exchange

    def details(self) -> Json:
        """The client's note on it (`toolUseResult`)."""
        usage = self.exchange.usage
        return {
            "status": "completed",
            "prompt": self.run.task,
            "agentId": self.run.ledger.agent_id,
            "content": [text_block(self.text)],
            "totalDurationMs": self.run.now_ms - self.started_ms,
            "totalTokens": usage.prompt_tokens + usage.output_tokens,
            "totalToolUseCount": self.run.tool_uses,
            "usage": usage_json(usage),
        }


class Client(ABC):
    """One user's client.

    Args:
        user: Whose client.
        folder: The user's folder in the landing folder.
        proxy: Where its requests go.
        size: Dimensions of the landing folder.
        seed: Of the landing folder.
        tick: Called after every turn.
    """

    generation: ClassVar[str]
    agent_tool: ClassVar[str]
    version: ClassVar[str]
    main_model: ClassVar[str]
    small_model: ClassVar[str]

    def __init__(
        self, user: User, folder: Path, proxy: Proxy, size: DemoSize, seed: int, tick: Callable[[], None]
    ) -> None:
        self.user, self.folder, self.proxy, self.size, self.seed, self.tick = (
            user,
            folder,
            proxy,
            size,
            seed,
            tick,
        )
        self.ledgers: list[ConversationLedger] = []

    # -- the conversation ------------------------------------------------------------------------

    def converse(self, plan: Plan, number: int, start_ms: int) -> Script:
        """The script of one conversation."""
        session = self._open_session(number)
        run = self.open_main(session, start_ms)
        extras = [(start_ms, script) for script in self.extras(run, plan)]
        yield Join(((start_ms, self.play(run, plan.steps)), *extras))

    def play(self, run: AgentRun, steps: tuple[Turn | Event, ...]) -> Generator[Any, Any, tuple[Reply, Exchange]]:
        """The script of an agent's steps; returns its last reply."""
        last: tuple[Reply, Exchange] | None = None
        for step in steps:
            if isinstance(step, Turn):
                last = yield from self._take(run, step)
            else:
                yield from self.on_event(run, step)
        assert last, "a plan has at least one turn"  # noqa: S101 - for the type checker
        return last

    def _take(self, run: AgentRun, turn: Turn) -> Generator[Any, Any, tuple[Reply, Exchange]]:
        """One turn: maybe a prompt, the request, and what its reply asks for."""
        run.now_ms += turn.pause_ms + run.session.rng.randrange(300, 3_000)
        if run.awaits_prompt:
            run.now_ms += 0 if run.task else run.session.rng.randrange(*_TYPING_MS)
            self.put_prompt(run, turn)
        yield run.now_ms
        reply, follow_up = self._imagine(run, turn)
        exchange = yield from self.request(run, turn, reply)
        run.now_ms, run.last_request_id = exchange.end_ms, exchange.request_id
        run.ledger.message_ids.append(exchange.message_id)
        self.tick()
        self.write_reply(run, reply, exchange)
        run.add(Message.of("assistant", list(reply.contents)))
        run.awaits_prompt = turn.reply == "answer"
        yield from follow_up
        return reply, exchange

    def _imagine(self, run: AgentRun, turn: Turn) -> tuple[Reply, Script]:
        """The scripted reply, and the script of what it sets off."""
        rng, tokens = run.session.rng, self.size.turn_tokens
        if turn.reply == "answer":
            return answer_reply(rng, max(20, tokens // 3)), _nothing()
        if turn.reply == "agents":
            reply, uses = agents_reply(rng, self.agent_tool, turn.children)
            return reply, self._delegate(run, turn, uses)
        reply, calls = work_reply(rng, tokens, turn.calls)
        return reply, self._use_tools(run, turn, calls)

    def _use_tools(self, run: AgentRun, turn: Turn, calls: list[ToolCall]) -> Script:
        """Run ordinary tools and put their results into the prompt."""
        results = []
        for call in calls:
            run.now_ms += run.session.rng.randrange(20, 900)
            result = tool_result(call.use["id"], call.result)
            self.write_result(run, result, call.details)
            results.append(result)
        run.tool_uses += len(calls)
        run.add(Message.of("user", results))
        self.after_results(run, turn)
        yield from _nothing()

    def _delegate(self, run: AgentRun, turn: Turn, uses: list[Json]) -> Script:
        """Run sub-agents side by side and put their reports into the prompt."""
        starts = []
        for place, (child, use) in enumerate(zip(turn.children, uses, strict=True)):
            start_ms = run.now_ms + 20 + place * _SPAWN_STAGGER_MS
            starts.append((start_ms, self._work_as_child(run, child, use, start_ms)))
        reports: list[Report] = yield Join(tuple(starts))
        run.tool_uses += len(uses)
        run.now_ms = max(report.run.now_ms for report in reports) + 60
        results = []
        for report, use in zip(reports, uses, strict=True):
            result = tool_result(use["id"], [text_block(report.text)])
            self.write_result(run, result, report.details())
            results.append(result)
        run.add(Message.of("user", results))

    def _work_as_child(self, parent: AgentRun, child: Child, use: Json, start_ms: int) -> Script:
        """The script of a sub-agent; returns its `Report`."""
        run = self.open_child(parent, child, use, start_ms)
        reply, exchange = yield from self.play(run, child.turns)
        return Report(run, reply.contents[-1]["text"], start_ms, exchange)

    # -- helpers for the generations ---------------------------------------------------------------

    def instructions(self, kind: str) -> Instructions:
        """Tools and system prompt of an agent type."""
        return instructions_of(self.size, self.seed, self.generation, kind)

    def new_agent(self, session: Session, agent_id: str | None, kind: str, parent: AgentRun | None) -> AgentLedger:
        """Enter an agent into the conversation's tally."""
        parent_id = parent.ledger.agent_id if parent else None
        ledger = AgentLedger(agent_id, kind, parent_id)
        session.ledger.agents.append(ledger)
        return ledger

    def count(self, run: AgentRun, reason: str) -> None:
        """Count a row that is no turn."""
        run.session.ledger.unindexed[reason] += 1

    def user_message(self, run: AgentRun, turn: Turn) -> list[Json]:
        """What the user, or the parent agent, asks."""
        return [text_block(run.task)] if run.task else prompt_contents(run.session.rng, turn.prompt)

    def make_request(self, run: AgentRun, body: str, marked: set[int], headers: Json) -> Request:
        """A request on its way to the proxy."""
        ledger = run.session.ledger
        if self.proxy.current not in ledger.databases:
            ledger.databases.append(self.proxy.current)
        return Request(run.model, body, run.prompt(marked), f"claude-cli/{self.version} (external, cli)", headers)

    def _open_session(self, number: int) -> Session:
        rng = seeded(self.seed, self.user.name, number)
        session_id = uuid_of(rng)
        ledger = ConversationLedger(self.user.name, self.generation, [session_id])
        self.ledgers.append(ledger)
        folder = self.folder / "projects" / self.user.project
        return Session(self.user, folder, session_id, ledger, rng, f"{rng.getrandbits(12):03x}")

    # -- what differs between the generations ------------------------------------------------------

    @abstractmethod
    def open_main(self, session: Session, start_ms: int) -> AgentRun:
        """The main agent of a new conversation."""

    @abstractmethod
    def open_child(self, parent: AgentRun, child: Child, use: Json, start_ms: int) -> AgentRun:
        """A sub-agent that `use` starts."""

    @abstractmethod
    def put_prompt(self, run: AgentRun, turn: Turn) -> None:
        """Put a user's message into prompt and transcript."""

    @abstractmethod
    def request(self, run: AgentRun, turn: Turn, reply: Reply) -> Generator[Any, Any, Exchange]:
        """Ask the API, as often as this generation does; returns the exchange the client goes by."""

    @abstractmethod
    def write_reply(self, run: AgentRun, reply: Reply, exchange: Exchange) -> None:
        """Put a reply into the transcript."""

    @abstractmethod
    def write_result(self, run: AgentRun, result: Json, details: Json) -> None:
        """Put a tool result into the transcript."""

    @abstractmethod
    def on_event(self, run: AgentRun, event: Event) -> Script:
        """Compact, rotate or resume."""

    @abstractmethod
    def extras(self, run: AgentRun, plan: Plan) -> list[Script]:
        """Scripts of requests besides the conversation's own, which start beside its first turn."""

    @abstractmethod
    def after_results(self, run: AgentRun, turn: Turn) -> None:
        """Whatever the client adds behind tool results."""


def system_json(texts: tuple[str, ...], first_marked: int = 0) -> str:
    """System blocks with breakpoints; the proxy's struct drops their lifetime and orders keys like this."""
    blocks = [
        {
            "text": text,
            "type": "text",
            **({"cache_control": {"type": "ephemeral"}} if i >= first_marked else {}),
        }
        for i, text in enumerate(texts)
    ]
    return go(blocks)


def _nothing() -> Script:
    """A script that does nothing."""
    return
    yield
