"""The newer client behind the fixed proxy: one streaming request a turn."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from kv_pipeline.demo.agents import AgentRun, Session
from kv_pipeline.demo.client import Client, system_json
from kv_pipeline.demo.engine import Script
from kv_pipeline.demo.plans import Child, Event, Plan, Turn
from kv_pipeline.demo.proxy import Request
from kv_pipeline.demo.replies import answer_reply, tool_result
from kv_pipeline.demo.request_log import RequestLog
from kv_pipeline.demo.responses import Exchange, Reply, usage_json
from kv_pipeline.demo.transcripts import Transcript
from kv_pipeline.demo.truth import ABORTED_STREAM, COMPACTION, FAILED_ATTEMPT
from kv_pipeline.demo.wire import Json, Message, compact, text_block
from kv_pipeline.demo.wording import prose, uuid_of

_SUMMARY_REQUEST = "Summarise the conversation so far in plain text. Name open tasks and the files they touch."
_SUMMARY_HEAD = "Summary of the earlier part of this conversation:\n"
_FORK_NOTE = "<fork>You are a copy of the agent above with its history. Do only the task of your call.</fork>"
_SMALL_MODEL_KINDS = {"Explore"}


class FixedClient(Client):
    """Writes sub-agents into a folder of their session, with a file of metadata each."""

    generation = "fixed"
    agent_tool = "Agent"
    version = "2.1.330"
    main_model = "claude-opus-5-5"
    small_model = "claude-haiku-4-5-20251001"

    def open_main(self, session: Session, start_ms: int) -> AgentRun:
        """The main agent, on the big model and with the user's cache lifetime."""
        ledger = self.new_agent(session, None, "main", None)
        lifetime = self.user.lifetime
        transcript = self._transcript(session, None)
        run = AgentRun(session, ledger, self.instructions("main"), self.main_model, lifetime, transcript, start_ms)
        run.request_log = self._new_log()
        return run

    def open_child(self, parent: AgentRun, child: Child, use: Json, start_ms: int) -> AgentRun:
        """A sub-agent: 5-minute lifetime whatever its parent has."""
        session = parent.session
        agent_id = f"a{session.rng.getrandbits(64):016x}"
        run = AgentRun(
            session,
            self.new_agent(session, agent_id, child.kind, parent),
            self.instructions(child.kind),
            self.small_model if child.kind in _SMALL_MODEL_KINDS else self.main_model,
            "5m",
            self._transcript(session, agent_id),
            start_ms,
            task=use["input"]["prompt"],
            depth=parent.depth + 1,
        )
        self._write_meta(parent, run, use)
        if child.kind == "fork":
            self._inherit(parent, run, use)
        else:
            run.request_log = self._new_log()
        return run

    def put_prompt(self, run: AgentRun, turn: Turn) -> None:
        """A prompt; the first one of an agent, and the first after a compaction, stands between reminders."""
        contents = self.user_message(run, turn)
        if not run.task:
            run.session.prompt_id = uuid_of(run.session.rng)
            run.transcript.queued(contents[0]["text"], run.now_ms - 90)
        shown = contents if len(contents) > 1 else contents[0]["text"]
        self._write_user(run, {"message": {"role": "user", "content": shown}})
        if run.has_surroundings:
            run.add(Message.of("user", contents))
        else:
            self._add_with_surroundings(run, contents)

    def request(self, run: AgentRun, turn: Turn, reply: Reply) -> Generator[Any, Any, Exchange]:
        """One streaming request, after the attempts that fail."""
        self._note_request(run)
        for attempt in range(turn.failures):
            refused = self.proxy.refuse(self._request(run), run.now_ms)
            self.count(run, FAILED_ATTEMPT)
            wait_ms = 1_000 * 2**attempt
            self._write_error(run, refused.end_ms, attempt + 1, wait_ms)
            run.now_ms = refused.end_ms + wait_ms
            yield run.now_ms
        if turn.is_aborted:
            broken = self.proxy.stream(self._request(run), reply, run.now_ms, is_aborted=True)
            self.count(run, ABORTED_STREAM)
            run.now_ms = broken.end_ms + 2_500
            yield run.now_ms
        exchange = self.proxy.stream(self._request(run), reply, run.now_ms)
        run.ledger.billed_ids.append(exchange.message_id)
        return exchange

    def write_reply(self, run: AgentRun, reply: Reply, exchange: Exchange) -> None:
        """One record a content block, all with the message's id and usage."""
        message = _message(exchange, reply)
        for index, content in enumerate(reply.contents):
            record: Json = {"message": {**message, "content": [content]}, "apiBlockIndex": index}
            reference = {"requestRef": run.request_ref} if run.request_ref else {}
            identity = {"requestId": exchange.request_id, **reference, "requestedModel": run.model}
            kind = {} if run.is_main else {"attributionAgent": run.ledger.kind}
            lifetime = {"promptCacheRequested": run.lifetime}
            at_ms = exchange.end_ms - len(reply.contents) + index
            uuid = run.transcript.chain({**record, **identity, **lifetime, **kind, "type": "assistant"}, at_ms)
            if content["type"] == "tool_use":
                run.uuid_by_use[content["id"]] = uuid

    def write_result(self, run: AgentRun, result: Json, details: Json) -> None:
        """One record a result; only main transcripts carry the client's own note on it."""
        if "agentId" in details:
            details = {**details, "agentType": _kind_of(run, details["agentId"])}
        note = {"toolUseResult": details} if run.is_main else {}
        source = {"sourceToolAssistantUUID": run.uuid_by_use.pop(result["tool_use_id"])}
        self._write_user(run, {"message": {"role": "user", "content": [result]}, **note, **source})

    def after_results(self, run: AgentRun, turn: Turn) -> None:
        """Now and then the client announces something to the model, as a message of role system."""
        if turn.has_notice:
            notice = f"Note from the client: {prose(run.session.rng, 20)}"
            self._write_attachment(run, "notice", notice, "system")
            run.add(Message.of("system", [text_block(notice)]))

    def extras(self, run: AgentRun, plan: Plan) -> list[Script]:
        """None: this client's helpers all belong to agents."""
        del run, plan
        return []

    def on_event(self, run: AgentRun, event: Event) -> Script:
        """Compact, rotate the proxy's database, or resume in a new session."""
        match event:
            case Event.COMPACT:
                yield from self._compact(run)
            case Event.ROTATE_DATABASE:
                self._rotate()
            case Event.RESUME:
                self._resume(run)

    def _compact(self, run: AgentRun) -> Script:
        """Ask for a summary in a request that no transcript names, and go on from it."""
        kept = run.messages[-1]
        run.add(Message.of("user", [text_block(_SUMMARY_REQUEST)]))
        run.now_ms += 8_000
        yield run.now_ms
        reply = answer_reply(run.session.rng, 90)
        request = self._request(run, marked={len(run.messages) - 2})
        exchange = self.proxy.stream(request, reply, run.now_ms)
        self.count(run, COMPACTION)
        run.now_ms = exchange.end_ms
        summary = _SUMMARY_HEAD + reply.contents[0]["text"]
        self._write_boundary(run, exchange, summary)
        run.reset([Message.of("user", [text_block(summary)]), Message.of("system", []), kept])
        run.has_surroundings = False

    def _new_log(self) -> RequestLog | None:
        """Only some installations record requests."""
        return RequestLog() if self.user.lifetime == "5m" else None

    def _note_request(self, run: AgentRun) -> None:
        """Note the next request just before it is sent."""
        if run.request_log is not None:
            parts = (run.transcript, run.instructions, run.model, run.lifetime, run.messages, run.now_ms)
            run.request_ref = run.request_log.note(*parts)

    def _write_error(self, run: AgentRun, at_ms: int, attempt: int, wait_ms: int) -> None:
        """The client's note that an attempt was refused."""
        error = {"message": "529 Overloaded", "status": 529}
        retry = {"retryInMs": wait_ms, "retryAttempt": attempt, "maxRetries": 10, "source": "request_retry"}
        kind = {"type": "system", "subtype": "api_error", "level": "error"}
        run.transcript.chain({**kind, "error": error, **retry}, at_ms)

    def _add_with_surroundings(self, run: AgentRun, contents: list[Json]) -> None:
        """A prompt with a reminder before it and a system message behind it."""
        context, environment = _surroundings(run)
        self._write_attachment(run, "session_context", context, "user")
        self._write_attachment(run, "environment", environment, "system")
        run.add(
            Message.of("user", [text_block(context), *contents]),
            Message.of("system", [text_block(environment)]),
        )
        run.has_surroundings = True

    def _write_boundary(self, run: AgentRun, exchange: Exchange, summary: str) -> None:
        """The two records that stand for the compaction."""
        before = exchange.usage.prompt_tokens
        measures = {"trigger": "manual", "preTokens": before, "durationMs": exchange.end_ms - exchange.at_ms}
        boundary = {
            "type": "system",
            "subtype": "compact_boundary",
            "content": "History replaced by a summary",
        }
        run.transcript.queued("/compact", exchange.at_ms - 60)
        logical = {"logicalParentUuid": run.transcript.last_uuid, "isMeta": False, "level": "info"}
        run.transcript.chain({**logical, **boundary, "compactMetadata": measures}, exchange.end_ms, parent=None)
        flags = {"isVisibleInTranscriptOnly": True, "isCompactSummary": True}
        self._write_user(run, {"message": {"role": "user", "content": summary}, **flags})

    def _rotate(self) -> None:
        """Begin a new proxy database; the old one's new name goes into the tallies."""
        aside = self.proxy.rotate()
        for ledger in self.ledgers:
            ledger.databases = [aside if name == self.proxy.current else name for name in ledger.databases]

    def _resume(self, run: AgentRun) -> None:
        """Go on in a new session whose transcript begins with a copy of the old one."""
        session, old = run.session, run.transcript
        session.session_id = uuid_of(session.rng)
        session.ledger.session_ids.append(session.session_id)
        run.transcript = self._transcript(session, None)
        run.request_log = self._new_log()
        for record in old.records():
            if "uuid" in record:
                run.transcript.copy(record)

    def _inherit(self, parent: AgentRun, run: AgentRun, use: Json) -> None:
        """Give a fork its parent's messages, the call that made it, and its task."""
        started = [tool_result(use["id"], [text_block("Forked.")]), text_block(f"{_FORK_NOTE}\n{run.task}")]
        calls = Message.of("assistant", [use])
        run.reset([*parent.messages[:-1], calls, Message.of("user", started)])
        run.awaits_prompt = False
        reference = {"type": "fork-context-ref", "agentId": run.ledger.agent_id}
        last = {"parentSessionId": run.session.session_id, "parentLastUuid": parent.transcript.last_uuid}
        run.transcript.write({**reference, **last, "contextLength": len(parent.messages) - 1})
        self._copy_call(parent, run, use)
        self._write_user(run, {"message": {"role": "user", "content": started}})

    def _copy_call(self, parent: AgentRun, run: AgentRun, use: Json) -> None:
        """The parent's record of the call, with the usage known when the stream began."""
        for record in parent.transcript.records():
            if record.get("uuid") == parent.uuid_by_use[use["id"]]:
                message = {**record["message"], "stop_reason": None}
                message["usage"] = {**message["usage"], "output_tokens": 1}
                kept = {name: record[name] for name in ("apiBlockIndex", "requestId", "requestedModel")}
                run.transcript.chain({"message": message, **kept, "type": "assistant"}, run.now_ms, parent=None)

    def _write_meta(self, parent: AgentRun, run: AgentRun, use: Json) -> None:
        """The `.meta.json` beside a sub-agent's transcript."""
        kind = run.ledger.kind
        nested = {} if parent.is_main else {"parentAgentId": parent.ledger.agent_id}
        call = {"description": use["input"]["description"], "toolUseId": use["id"], "spawnDepth": run.depth}
        fork = {"isFork": True} if kind == "fork" else {}
        model = {"model": "inherit" if fork else run.model, "finished": True}
        meta = {"agentType": kind, **fork, "isBuiltIn": True, **call, **nested, **model}
        run.transcript.path.with_suffix(".meta.json").write_text(compact(meta), encoding="utf-8")

    def _request(self, run: AgentRun, marked: set[int] | None = None) -> Request:
        """The next request, with breakpoints on the system prompt and the last message."""
        marked = {len(run.messages) - 1} if marked is None else marked
        parts = (
            f'"model":"{run.model}"',
            f'"messages":{run.messages_json(marked)}',
            '"max_tokens":64000',
            f'"system":{system_json((self._billing_header(run), *run.instructions.system), first_marked=1)}',
            '"stream":true',
            f'"tools":{run.instructions.tools}',
        )
        agent = {} if run.is_main else {"X-Claude-Code-Agent-Id": [run.ledger.agent_id]}
        headers = {"X-Claude-Code-Session-Id": [run.session.session_id], **agent}
        return self.make_request(run, f"{{{','.join(parts)}}}", marked, headers)

    def _billing_header(self, run: AgentRun) -> str:
        """The client's attribution block; three of its values differ in every request or prompt."""
        fields = [
            f"cc_version={self.version}.{run.session.version_suffix}",
            "cc_entrypoint=cli",
            f"cch={run.session.rng.getrandbits(20):05x}",
            *([] if run.is_main else ["cc_is_subagent=true"]),
            f"cc_prev_req={run.last_request_id}",
            f"cc_prompt_id={run.session.prompt_id}",
        ]
        return f"x-anthropic-billing-header: {'; '.join(fields)};"

    def _write_user(self, run: AgentRun, record: Json) -> None:
        run.transcript.chain({"promptId": run.session.prompt_id, "type": "user", **record}, run.now_ms)

    def _write_attachment(self, run: AgentRun, kind: str, text: str, role: str) -> None:
        record = {"type": "attachment", "attachment": {"type": kind}, "rendered": [{"content": text}]}
        run.transcript.chain({**record, "renderedRole": role}, run.now_ms)

    def _transcript(self, session: Session, agent_id: str | None) -> Transcript:
        folder = session.project_folder
        path = folder / f"{session.session_id}.jsonl"
        if agent_id is not None:
            path = folder / session.session_id / "subagents" / f"agent-{agent_id}.jsonl"
        common = {
            "userType": "external",
            "entrypoint": "cli",
            "cwd": self.user.cwd,
            "sessionId": session.session_id,
            "version": self.version,
            "gitBranch": "main",
        }
        return Transcript(path, common, session.rng, agent_id, is_modern=True)


def _surroundings(run: AgentRun) -> tuple[str, str]:
    """The reminder before a first prompt and the environment after it."""
    cwd = run.session.user.cwd
    context = f"<system-reminder>\nRepository: {cwd}, branch main, clean.\n</system-reminder>"
    return (
        context,
        f"# Surroundings\n - Working directory: {cwd}\n - Platform: linux & bash\n - Model: {run.model}",
    )


def _message(exchange: Exchange, reply: Reply) -> Json:
    """The message fields that each of its records repeats."""
    head = {"id": exchange.message_id, "type": "message", "role": "assistant", "model": exchange.model}
    end = {"stop_reason": reply.stop_reason, "stop_sequence": None, "usage": usage_json(exchange.usage)}
    return {**head, "content": [], **end}


def _kind_of(run: AgentRun, agent_id: str) -> str:
    return next(agent.kind for agent in run.session.ledger.agents if agent.agent_id == agent_id)
