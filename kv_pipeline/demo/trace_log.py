"""A user without a proxy: a client whose own requests claude-trace logs, and who sends no transcripts.

The client is the newer one; its transcripts go to a folder that is thrown away.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec

from kv_pipeline.demo.agents import AgentRun, User
from kv_pipeline.demo.engine import Script, run
from kv_pipeline.demo.fixed_client import FixedClient
from kv_pipeline.demo.plans import Child, Plan, Turn
from kv_pipeline.demo.prompt_cache import PromptCache
from kv_pipeline.demo.proxy import Proxy, Request
from kv_pipeline.demo.replies import answer_reply
from kv_pipeline.demo.responses import Exchange
from kv_pipeline.demo.size import DemoSize
from kv_pipeline.demo.wire import Json, Message, compact
from kv_pipeline.demo.wording import seeded

LOG_USER = User("hedy", "fixed-log", "5m", 0)
_WORK, _ANSWER = Turn(), Turn("answer")
_PLAN = Plan(
    (_WORK, Turn("agents", (Child("Explore", (_WORK, _ANSWER)),)), Turn(failures=1), _ANSWER, _ANSWER), side_requests=2
)


class TraceLog(Proxy):
    """Logs what passes through it, a pair a line, as answers end.

    Args:
        path: The log.
        rng: Where ids and latencies come from.
    """

    def __init__(self, path: Path, rng: Random) -> None:
        self.current, self.row_counts = path.name, {}
        self._rng, self._is_fixed, self._cache = rng, True, PromptCache()
        self._path = path
        self._pairs: list[tuple[int, Json]] = []

    def close(self) -> None:
        """Write the log; the last request is left unanswered, as by a client that was ended."""
        self._pairs.sort(key=lambda pair: pair[0])
        last = self._pairs[-1][1]
        self._pairs[-1] = (0, {**last, "response": None, "note": "ORPHANED_REQUEST - No matching response received"})
        self._path.parent.mkdir(parents=True)
        self._path.write_text("".join(compact(pair) + "\n" for _, pair in self._pairs), encoding="utf-8")
        self.row_counts[self.current] = len(self._pairs)

    def _record(self, request: Request, exchange: Exchange, response: Json) -> None:
        session = request.headers["X-Claude-Code-Session-Id"][0]
        body = {**msgspec.json.decode(request.body), "metadata": {"user_id": f"user_0_account_0_session_{session}"}}
        sent = {"authorization": "Bearer not-a-real-token", "User-Agent": request.user_agent}
        url = "https://api.anthropic.com/v1/messages?beta=true"
        pair = {
            "request": {
                "timestamp": exchange.at_ms / 1000,
                "method": "POST",
                "url": url,
                "headers": sent,
                "body": body,
            },
            "response": _response(exchange, response),
            "logged_at": datetime.fromtimestamp(exchange.end_ms / 1000, UTC).isoformat(),
        }
        self._pairs.append((exchange.end_ms, pair))


def _response(exchange: Exchange, stored: Json) -> Json:
    """The response in claude-trace's form; the API itself tells no time to the first token."""
    headers = {name: values[0] for name, values in stored["headers"].items() if name != "Server-Timing"}
    head = {"timestamp": exchange.end_ms / 1000, "status_code": stored["statusCode"], "headers": headers}
    if "streamingChunks" in stored:
        events = [(msgspec.json.decode(line[5:])["type"], line) for line in stored["streamingChunks"]]
        return {**head, "body_raw": "".join(f"event: {kind}\n{line}\n\n" for kind, line in events)}
    if "bodyText" in stored:
        return {**head, "body": msgspec.json.decode(stored["bodyText"])}
    return {**head, "body": stored["body"]}


class _TracedClient(FixedClient):
    """The newer client, with the helper requests that belong to no agent."""

    def extras(self, run: AgentRun, plan: Plan) -> list[Script]:
        """Title requests on the small model."""
        return [self._ask_for_title(run, number) for number in range(plan.side_requests)]

    def _ask_for_title(self, run: AgentRun, number: int) -> Script:
        at_ms = run.now_ms + 50 * (number + 1)
        yield at_ms
        instructions, session = self.instructions("title"), run.session
        aside = AgentRun(session, run.ledger, instructions, self.small_model, "5m", run.transcript, at_ms)
        aside.add(Message.of("user", self.user_message(run, Turn())))
        body = f'{{"model":"{aside.model}","messages":{aside.messages_json(set())},"max_tokens":512}}'
        headers = {"X-Claude-Code-Session-Id": [session.session_id]}
        request = Request(aside.model, body, aside.prompt(set()), f"claude-cli/{self.version}", headers)
        self.proxy.ask(request, answer_reply(session.rng, 8), at_ms)


def write_trace_log(out: Path, *, size: DemoSize, seed: int, start_ms: int) -> dict[str, int]:
    """Write `<out>/hedy/.claude-trace/log-*.jsonl`: a session with a sub-agent, a refusal, titles and an orphan.

    Returns:
        The log, relative to the landing folder, and its lines.
    """
    started = datetime.fromtimestamp(start_ms // 1000, UTC)
    path = out / LOG_USER.name / ".claude-trace" / f"log-{started:%Y-%m-%d-%H-%M-%S}.jsonl"
    log = TraceLog(path, seeded(seed, LOG_USER.name, "proxy"))
    with tempfile.TemporaryDirectory() as nowhere:
        client = _TracedClient(LOG_USER, Path(nowhere), log, size, seed, lambda: None)
        run([(start_ms, client.converse(_PLAN, 0, start_ms))])
    log.close()
    return {str(path.relative_to(out)): log.row_counts[path.name]}
