"""Tools and system prompts of the demo clients: our own words, equal for every user of a client."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from kv_pipeline.demo.prompt_cache import START, Position, next_position
from kv_pipeline.demo.size import DemoSize
from kv_pipeline.demo.wire import Json, estimated_tokens, go
from kv_pipeline.demo.wording import NOUNS, VERBS, prose, seeded

IDENTITY = "You work as a coding assistant for the harbour project."
SIDE_TASK = "Write a title of at most six words for the conversation that begins with this message."
_ARGUMENTS = {
    "Bash": ("command", "description", "timeout"),
    "Edit": ("file_path", "new_string", "old_string"),
    "Glob": ("path", "pattern"),
    "Grep": ("glob", "path", "pattern"),
    "Read": ("file_path", "limit", "offset"),
    "Write": ("content", "file_path"),
    "Agent": ("description", "prompt", "subagent_type"),
    "Task": ("description", "prompt", "subagent_type"),
}
_READ_ONLY = ("Bash", "Grep", "Read")
_ALL = {
    "fixed": ("Agent", "Bash", "Edit", "Grep", "Read", "Write"),
    "older": ("Task", "Bash", "Glob", "Grep", "Read", "Edit"),
}
_TOKENS_PER_EXTRA_TOOL = 800
_BASIC_TOOLS = 6


@dataclass(frozen=True, slots=True)
class Instructions:
    """What precedes the messages in every request of an agent.

    Attributes:
        tools: JSON array of tool definitions, empty when the request has none.
        system: Texts of the system blocks, without the billing header that newer clients put first.
        positions: The cacheable prefixes they make; the billing header is no part of them.
    """

    tools: str
    system: tuple[str, ...]
    positions: tuple[Position, ...]


@cache
def instructions_of(size: DemoSize, seed: int, generation: str, kind: str) -> Instructions:
    """The instructions of an agent type; "main", "Warmup" and "title" are our names."""
    if kind == "fork":  # it inherits its parent's prefix, tools included
        kind = "main"
    rng = seeded(seed, "instructions", generation, kind)
    system = _system_of(rng, size, kind)
    tools = _tools_of(size, seed, generation, kind)
    return Instructions(f"[{','.join(tools)}]" if tools else "", system, _positions(tools, system))


def _positions(tools: list[str], system: tuple[str, ...]) -> tuple[Position, ...]:
    """The prefix after every tool and every system block."""
    positions, last = [], START
    for text in (*tools, *system):
        last = next_position(last, text, estimated_tokens(text))
        positions.append(last)
    return tuple(positions)


def _system_of(rng: Random, size: DemoSize, kind: str) -> tuple[str, ...]:
    """Identity and instructions."""
    if kind == "title":
        return IDENTITY, SIDE_TASK
    shares = {"main": 1.0, "general-purpose": 0.7, "Warmup": 0.3}
    body = prose(rng, int(size.system_tokens * shares.get(kind, 0.6)))
    return IDENTITY, f"\nYou are the {kind} agent. Rules of the house <important>:\n{body}"


def _tools_of(size: DemoSize, seed: int, generation: str, kind: str) -> list[str]:
    """JSON of each tool the agent type may use."""
    if kind in {"title", "Warmup"}:
        return []
    names = _tool_names(size, generation)
    if kind == "Explore":
        names = [name for name in names if name in _READ_ONLY or "__" in name]
    share = size.tools_tokens // len(_tool_names(size, generation))
    return [go(_tool(seeded(seed, "tool", name), name, share)) for name in names]


def _tool_names(size: DemoSize, generation: str) -> list[str]:
    """The basic tools, and invented ones of a tool server where the size asks for more than they can hold."""
    extra = max(0, size.tools_tokens // _TOKENS_PER_EXTRA_TOOL - _BASIC_TOOLS)
    return [*_ALL[generation], *(f"mcp__harbour__{VERBS[i]}_{NOUNS[i]}" for i in range(extra))]


def _tool(rng: Random, name: str, tokens: int) -> Json:
    """One definition of about `tokens`, half of them in its description."""
    arguments = _ARGUMENTS.get(name, ("limit", "query", "since"))
    each = max(4, tokens // 2 // len(arguments) - 20)
    properties = {
        argument: {"description": prose(rng, each), "type": _type_of(argument)} for argument in sorted(arguments)
    }
    schema = {"type": "object", "properties": properties, "required": [sorted(arguments)[0]]}
    return {"name": name, "description": prose(rng, tokens // 2), "input_schema": schema}


def _type_of(argument: str) -> str:
    return "number" if argument in {"limit", "offset", "timeout", "since"} else "string"
