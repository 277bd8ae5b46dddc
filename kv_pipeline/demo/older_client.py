"""The older client behind the older proxy: every turn is streamed, then repeated without streaming.

That proxy swallows the end of a stream, so the client asks again at once. Both requests are recorded; the
transcript names the repetition, the cache was paid for by the stream.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from kv_pipeline.demo.agents import AgentRun, Session
from kv_pipeline.demo.client import Client, system_json
from kv_pipeline.demo.engine import Script
from kv_pipeline.demo.plans import Child, Event, Plan, Turn
from kv_pipeline.demo.proxy import Request
from kv_pipeline.demo.replies import answer_reply
from kv_pipeline.demo.responses import Exchange, Reply, message_json
from kv_pipeline.demo.transcripts import Transcript
from kv_pipeline.demo.truth import REPLAY_TWIN, SIDE_REQUEST, AgentLedger
from kv_pipeline.demo.wire import Json, Message

_WARM_UP_TEXT = "Warmup"
_REPEAT_AFTER_MS = 15


class OlderClient(Client):
    """Writes sub-agents beside their session; runs warm-ups and title requests."""

    generation = "older"
    agent_tool = "Task"
    version = "2.0.30"
    main_model = "claude-sonnet-4-5-20250929"
    small_model = "claude-haiku-4-5-20251001"

    def open_main(self, session: Session, start_ms: int) -> AgentRun:
        """The main agent."""
        return self._open(session, self.new_agent(session, None, "main", None), self.main_model, start_ms)

    def open_child(self, parent: AgentRun, child: Child, use: Json, start_ms: int) -> AgentRun:
        """A sub-agent; explorers run on the small model."""
        session = parent.session
        ledger = self.new_agent(session, f"{session.rng.getrandbits(32):08x}", child.kind, parent)
        model = self.small_model if child.kind == "Explore" else self.main_model
        run = self._open(session, ledger, model, start_ms)
        run.task = use["input"]["prompt"]
        return run

    def extras(self, run: AgentRun, plan: Plan) -> list[Script]:
        """Warm-ups and title requests."""
        models = (self.main_model, self.small_model)
        warmups = [self._warm_up(run.session, models[i % 2], run.now_ms) for i in range(plan.warmups)]
        return [*warmups, *(self._ask_for_title(run) for _ in range(plan.side_requests))]

    def after_results(self, run: AgentRun, turn: Turn) -> None:
        """Nothing."""

    def put_prompt(self, run: AgentRun, turn: Turn) -> None:
        """A prompt, without reminders."""
        contents = self.user_message(run, turn)
        if run.is_main and not run.messages:
            run.transcript.queued(contents[0]["text"], run.now_ms - 90)
        run.add(Message.of("user", contents))
        shown = contents if len(contents) > 1 else contents[0]["text"]
        run.transcript.chain({"type": "user", "message": {"role": "user", "content": shown}}, run.now_ms)

    def request(self, run: AgentRun, turn: Turn, reply: Reply) -> Generator[Any, Any, Exchange]:
        """The stream that pays, then its repetitions; the client goes by the last."""
        exchange = self.proxy.stream(self._request(run, is_streaming=True), reply, run.now_ms)
        run.ledger.billed_ids.append(exchange.message_id)
        for _ in range(turn.replays):
            run.now_ms = exchange.end_ms + _REPEAT_AFTER_MS
            yield run.now_ms
            exchange = self.proxy.ask(self._request(run, is_streaming=False), reply, run.now_ms)
            self.count(run, REPLAY_TWIN)
        return exchange

    def write_reply(self, run: AgentRun, reply: Reply, exchange: Exchange) -> None:
        """One record with the whole message, as the non-streaming response brought it."""
        message = message_json(exchange, reply)
        run.transcript.chain({"message": message, "type": "assistant"}, exchange.end_ms)

    def write_result(self, run: AgentRun, result: Json, details: Json) -> None:
        """One record a result, with the client's note."""
        record = {"type": "user", "message": {"role": "user", "content": [result]}, "toolUseResult": details}
        run.transcript.chain(record, run.now_ms)

    def on_event(self, run: AgentRun, event: Event) -> Script:
        """Resume in the same file; the older client knows no other event."""
        if event is not Event.RESUME:
            msg = f"the older client has no {event.name}"
            raise NotImplementedError(msg)
        yield run.now_ms
        self._resume(run)

    def _resume(self, run: AgentRun) -> None:
        """Copy the history into the same file, one record a content block and all under new uuids."""
        old = [record for record in run.transcript.records() if "uuid" in record]
        run.transcript.queued("", run.now_ms)
        run.transcript.last_uuid = old[0]["uuid"]
        for record in old[1:]:
            content = record["message"]["content"]
            for block in content if isinstance(content, list) else [content]:
                run.transcript.copy(record, [block] if isinstance(content, list) else None)

    def _warm_up(self, session: Session, model: str, start_ms: int) -> Script:
        """A one-request agent that no tool call names."""
        ledger = AgentLedger(f"{session.rng.getrandbits(32):08x}", "Warmup", is_linked=False)
        session.ledger.agents.append(ledger)
        run = self._open(session, ledger, model, start_ms)
        run.task = _WARM_UP_TEXT
        yield from self.play(run, (Turn("answer"),))

    def _ask_for_title(self, run: AgentRun) -> Script:
        """A request without tools or breakpoints that belongs to no transcript."""
        nobody = AgentLedger("", "title")
        aside = AgentRun(
            run.session,
            nobody,
            self.instructions("title"),
            self.small_model,
            "5m",
            run.transcript,
            run.now_ms,
        )
        contents = self.user_message(run, Turn())
        aside.add(Message.of("user", contents))
        reply = answer_reply(run.session.rng, 8)
        yield aside.now_ms
        exchange = self.proxy.stream(self._request(aside, is_streaming=True), reply, aside.now_ms)
        self.count(run, SIDE_REQUEST)
        aside.now_ms = exchange.end_ms + _REPEAT_AFTER_MS
        yield aside.now_ms
        self.proxy.ask(self._request(aside, is_streaming=False), reply, aside.now_ms)
        self.count(run, REPLAY_TWIN)

    def _request(self, run: AgentRun, *, is_streaming: bool) -> Request:
        """The next request. Only a request with tools or a warm-up has breakpoints."""
        is_title = run.ledger.kind == "title"
        marked = set() if is_title else _last_two(run)
        system = run.instructions.system
        parts = [
            f'"model":"{run.model}"',
            f'"messages":{run.messages_json(marked)}',
            f'"max_tokens":{32_000 if is_streaming else 21_333}',
            *([] if is_streaming else ['"temperature":1']),
            f'"system":{system_json(system, len(system) if is_title else 0)}',
            *(['"stream":true'] if is_streaming else []),
            *([f'"tools":{run.instructions.tools}'] if run.instructions.tools else []),
        ]
        headers = {"X-Stainless-Helper-Method": ["stream"]} if is_streaming else {}
        return self.make_request(run, f"{{{','.join(parts)}}}", marked, headers)

    def _open(self, session: Session, ledger: AgentLedger, model: str, start_ms: int) -> AgentRun:
        instructions = self.instructions(ledger.kind)
        transcript = self._transcript(session, ledger.agent_id)
        return AgentRun(session, ledger, instructions, model, self.user.lifetime, transcript, start_ms)

    def _transcript(self, session: Session, agent_id: str | None) -> Transcript:
        name = session.session_id if agent_id is None else f"agent-{agent_id}"
        common = {
            "userType": "external",
            "cwd": self.user.cwd,
            "sessionId": session.session_id,
            "version": self.version,
            "gitBranch": "main",
        }
        return Transcript(session.project_folder / f"{name}.jsonl", common, session.rng, agent_id, is_modern=False)


def _last_two(run: AgentRun) -> set[int]:
    """The last message and the reply before it."""
    last = len(run.messages) - 1
    return {index for index in (last - 1, last) if index >= 0}
