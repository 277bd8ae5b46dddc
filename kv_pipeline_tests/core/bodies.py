"""Requests as JSON bodies, through normalising and content blocks into the API model: what tests of it start from."""

from __future__ import annotations

import json
from typing import Any

from kv_pipeline.core.api_model import Bill, Use
from kv_pipeline.core.api_rules import HISTORY
from kv_pipeline.core.content_blocks import BlockPayload, content_blocks
from kv_pipeline.core.explain import Explained, Step, explain
from kv_pipeline.core.hashing import salted_u64
from kv_pipeline.core.lengths import LengthBook, Ratios
from kv_pipeline.core.normalise import SegmentKind, normalise
from kv_pipeline.core.prompts import Breakpoint, PromptOptions, Request, Section, Segment, Sent, Settings

SALT = b"salt"
EXACTLY_AS_COUNTED = Ratios(1.0, 1.0, 1.0, 0.0, 7)
SECTIONS = {SegmentKind.TOOLS: Section.TOOLS, SegmentKind.SYSTEM: Section.SYSTEM}
MARK = {"type": "ephemeral"}
MARK_1H = {"type": "ephemeral", "ttl": "1h"}


def words(text: str) -> int:
    """A tokenizer for tests: a token a word."""
    return len(text.split())


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def marked(words: str, **more: Any) -> dict[str, Any]:
    return text(words, cache_control=MARK, **more)


def tool(name: str, description: str = "does it", schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "description": description, "input_schema": schema or {"type": "object"}}


def user(*blocks: dict[str, Any] | str) -> dict[str, Any]:
    content = blocks[0] if len(blocks) == 1 and isinstance(blocks[0], str) else list(blocks)
    return {"role": "user", "content": content}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def body(*messages: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A request of one tool, one system block and messages; parts replace or add keys."""
    standard = {"model": "claude-opus-5-5", "tools": [tool("Read"), tool("Edit")], "system": [text("You help.")]}
    return {**standard, "messages": list(messages), **parts}


class Bodies:
    """Bodies on their way into one prompt tree."""

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}

    def request(self, sent: dict[str, Any]) -> Request:
        breakpoints: list[Breakpoint] = []
        tools = self._segment(SegmentKind.TOOLS, sent.get("tools"), 0, breakpoints)
        system = self._segment(SegmentKind.SYSTEM, sent.get("system"), 0, breakpoints)
        messages = [
            self._segment(SegmentKind.MESSAGE, message, index, breakpoints)
            for index, message in enumerate(sent["messages"])
        ]
        if "cache_control" in sent:
            breakpoints.append(Breakpoint(None, 0, 0, sent["cache_control"].get("ttl", "5m")))
        settings = Settings(sent["model"], *(_id(sent.get(key)) for key in ("speed", "thinking", "tool_choice")))
        return Request(settings, tools, system, tuple(n for n in messages if n is not None), tuple(breakpoints))

    def _segment(self, kind: SegmentKind, value: Any, item: int, breakpoints: list[Breakpoint]) -> int | None:
        if value is None:
            return None
        segment = normalise(kind, json.dumps(value).encode(), SALT)
        section = SECTIONS.get(kind, Section.MESSAGES)
        breakpoints += [Breakpoint(section, item, marker.block_index, marker.ttl) for marker in segment.markers]
        payloads = [BlockPayload(payload.digest, payload.estimated_tokens) for payload in segment.payloads]
        key = (kind, segment.text, *(payload.digest for payload in segment.payloads))
        number = self._numbers.setdefault(key, len(self._numbers))
        blocks = content_blocks(kind, segment.text, payloads, SALT, words)
        self.segments[number] = Segment(segment.role, tuple(blocks))
        return number


def _id(value: Any) -> int | None:
    return None if value is None else salted_u64(SALT, json.dumps(value).encode())


def explain_bodies(
    *sent: dict[str, Any], minimum_tokens: int = 0, strips: frozenset[str] = frozenset(), **options: Any
) -> list[Explained]:
    """Explain requests of one agent.

    A body may say, beside what is sent: `at_s` (0, 10, 20 …), `began_s` after which it can be read (1), `agent`,
    `compacted`, `bill`.
    """
    bodies = Bodies()
    requests = [bodies.request(one) for one in sent]
    tree, prompts = Sent(requests, bodies.segments, PromptOptions(strips, **options)).place()
    steps = []
    for index, (one, request, prompt) in enumerate(zip(sent, requests, prompts, strict=True)):
        at_s = float(one.get("at_s", 10 * index))
        use = Use(
            prompt, one["model"], "ada", one.get("agent", "main"), at_s, at_s + one.get("began_s", 1),
            minimum_tokens, HISTORY[0], one.get("bill"),
        )  # fmt: skip
        steps.append(Step(request.settings, use, True, one.get("compacted", False)))
    lengths = LengthBook(tree, {step.use.model: EXACTLY_AS_COUNTED for step in steps})
    return [found for found in explain(tree, steps, lengths) if found is not None]


def bill(read: int, written: int, fresh: int = 0) -> Bill:
    return Bill(fresh, read, written, 0)
