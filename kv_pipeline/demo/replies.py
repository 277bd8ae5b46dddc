"""What the scripted model says, and what its tools return."""

from __future__ import annotations

import zlib
from base64 import b64encode
from dataclasses import dataclass
from random import Random
from struct import pack
from typing import Literal

from kv_pipeline.demo.plans import Child
from kv_pipeline.demo.responses import Reply
from kv_pipeline.demo.wire import Json, compact, estimated_tokens, text_block
from kv_pipeline.demo.wording import (
    MARKER_TEXT,
    NOUNS,
    UNUSUAL_TEXTS,
    base62_of,
    code,
    numbered,
    path_of,
    prose,
)

PromptKind = Literal["plain", "image", "unusual", "special"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of an ordinary tool.

    Attributes:
        use: The tool_use content object.
        result: What goes back to the model.
        details: What the client notes about it in its transcript (`toolUseResult`).
    """

    use: Json
    result: str
    details: Json


def work_reply(rng: Random, turn_tokens: int, count: int) -> tuple[Reply, list[ToolCall]]:
    """A reply that calls `count` tools, or one to three if 0; their results make up most of `turn_tokens`."""
    count = count or rng.choice((1, 1, 2, 2, 3))
    share = max(8, int(turn_tokens * rng.uniform(0.5, 1.2) / count))
    calls = [_tool_call(rng, share) for _ in range(count)]
    lead = _lead(rng, max(8, turn_tokens // 12))
    return _reply([*lead, *(call.use for call in calls)], "tool_use"), calls


def agents_reply(rng: Random, tool: str, children: tuple[Child, ...]) -> tuple[Reply, list[Json]]:
    """A reply that starts sub-agents, and its tool_use objects in the order of `children`."""
    uses = [_agent_use(rng, tool, child) for child in children]
    return _reply([*_lead(rng, 12), *uses], "tool_use"), uses


def answer_reply(rng: Random, tokens: int) -> Reply:
    """A reply that ends the turn."""
    return _reply([text_block(prose(rng, tokens))], "end_turn")


def prompt_contents(rng: Random, kind: PromptKind) -> list[Json]:
    """What the user types or pastes."""
    text = prose(rng, 20)
    match kind:
        case "image":
            return [text_block(text), _image(rng)]
        case "unusual":
            return [text_block("\n".join((text, *UNUSUAL_TEXTS)))]
        case "special":
            return [text_block(f"{text}\n{MARKER_TEXT}")]
        case _:
            return [text_block(text)]


def tool_result(tool_use_id: str, content: str | list[Json]) -> Json:
    """The content object that answers a tool call."""
    return {"tool_use_id": tool_use_id, "type": "tool_result", "content": content}


def _reply(contents: list[Json], stop_reason: str) -> Reply:
    return Reply(tuple(contents), stop_reason, sum(estimated_tokens(compact(content)) for content in contents))


def _lead(rng: Random, tokens: int) -> list[Json]:
    """What comes before the tool calls: nothing, a remark, or thoughts and a remark."""
    mood = rng.random()
    remark = [text_block(prose(rng, tokens))]
    if mood < 0.3:
        return []
    if mood < 0.7:
        return remark
    return [{"type": "thinking", "thinking": prose(rng, tokens), "signature": base62_of(rng, 80)}, *remark]


def _use(rng: Random, name: str, arguments: Json) -> Json:
    return {"type": "tool_use", "id": f"toolu_01{base62_of(rng, 22)}", "name": name, "input": arguments}


def _agent_use(rng: Random, tool: str, child: Child) -> Json:
    task = {
        "description": f"Look at the {rng.choice(NOUNS)}",
        "subagent_type": child.kind,
        "prompt": prose(rng, 30),
    }
    return _use(rng, tool, task)


def _tool_call(rng: Random, tokens: int) -> ToolCall:
    make = rng.choice((_read, _read, _grep, _bash, _edit))
    return make(rng, tokens)


def _read(rng: Random, tokens: int) -> ToolCall:
    path, first, source = path_of(rng), rng.choice((1, 1, 40, 310)), code(rng, int(tokens * 0.85))
    arguments = {"file_path": path} if first == 1 else {"file_path": path, "offset": first, "limit": 200}
    lines = source.count("\n") + 1
    file = {
        "filePath": path,
        "content": source,
        "numLines": lines,
        "startLine": first,
        "totalLines": lines + first,
    }
    return ToolCall(_use(rng, "Read", arguments), numbered(source, first), {"type": "text", "file": file})


def _grep(rng: Random, tokens: int) -> ToolCall:
    arguments = {"pattern": rng.choice(NOUNS), "path": path_of(rng).rsplit("/", 1)[0]}
    found = "\n".join(f"{path_of(rng)}:{rng.randrange(900)}:{line}" for line in _matches(rng, tokens))
    details = {"mode": "content", "numFiles": 0, "filenames": [], "content": found}
    return ToolCall(_use(rng, "Grep", arguments), found, details)


def _matches(rng: Random, tokens: int) -> list[str]:
    """Source lines; each will stand behind a path of about 14 tokens."""
    return code(rng, tokens // 2).split("\n")


def _bash(rng: Random, tokens: int) -> ToolCall:
    command = f"pytest -q {path_of(rng)} 2>&1 | tail -n {rng.randrange(10, 90)} && echo <done>"
    output = code(rng, tokens)
    use = _use(rng, "Bash", {"command": command, "description": "Run the tests of one module"})
    details = {"stdout": output, "stderr": "", "interrupted": False, "isImage": False}
    return ToolCall(use, output, details)


def _edit(rng: Random, tokens: int) -> ToolCall:
    path, old, new = path_of(rng), code(rng, tokens // 3), code(rng, tokens // 3)
    use = _use(rng, "Edit", {"file_path": path, "old_string": old, "new_string": new})
    details = {"filePath": path, "userModified": False, "replaceAll": False}
    return ToolCall(use, f"The file {path} has been updated:\n{numbered(new, 12)}", details)


def _image(rng: Random) -> Json:
    """A PNG of 8 x 8 grey pixels. Stored uncompressed, so that its bytes don't depend on the zlib in use."""
    pixels = b"".join(b"\0" + rng.randbytes(8) for _ in range(8))
    header = pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels, 0)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)
    return {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": b64encode(data).decode()},
    }


def _chunk(name: bytes, body: bytes) -> bytes:
    return pack(">I", len(body)) + name + body + pack(">I", zlib.crc32(name + body))
