"""Records with which some newer clients note their requests: shapes, messages and what changed since the last one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from kv_pipeline.demo.prompts import Instructions
from kv_pipeline.demo.transcripts import Transcript, utc_text
from kv_pipeline.demo.wire import Json, Message

_SORTED = msgspec.json.Encoder(order="sorted")
_BETAS = ["claude-code-20250219", "context-management-2025-06-27"]


class RequestLog:
    """What an agent's transcript holds of its requests.

    Ids come from the file and a counter, so that recording changes nothing else that is made.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._digests: Sequence[str] = ()
        self._base: str | None = None
        self._n_requests = 0
        self._has_restarted = False

    def note(
        self,
        transcript: Transcript,
        instructions: Instructions,
        model: str,
        ttl: str,
        messages: list[Message],
        at_ms: int,
    ) -> str:
        """Write what a request adds; returns its id."""
        shape = _shape(instructions)
        sent, digests = zip(*map(_sent, messages), strict=True)
        keep = _n_shared(self._digests, digests) if self._base else 0
        self._has_restarted |= self._base is not None and not keep
        time = {"timestamp": utc_text(at_ms), "version": transcript.version}
        if (shape_hash := _digest(shape)) not in self._known:
            transcript.note({"type": "api-request-shape", "shapeHash": shape_hash, **time, "shape": shape})
        for index, (message, digest) in enumerate(zip(sent[keep:], digests[keep:], strict=True), start=keep):
            if digest not in self._known and self._stands_alone(index, message):
                transcript.note({"type": "api-request-blob", "hash": digest, "message": message})
        self._known |= {shape_hash, *digests}
        self._n_requests += 1
        request_id = _uuid(f"{transcript.path.name} {self._n_requests}")
        base = {"base": self._base} if self._base and keep else {}
        params = _params(model)
        transcript.note(
            {
                "type": "api-request", "id": request_id, **time, "shapeHash": shape_hash, "params": params, **base,
                "keep": keep, "tail": list(digests[keep:]), **_marks(shape, params, sent, ttl),
            }
        )  # fmt: skip
        self._base, self._digests = request_id, digests
        return request_id

    def _stands_alone(self, index: int, message: Json) -> bool:
        """Whether the message can't be put together from user and assistant records."""
        if message["role"] == "system":
            return True
        is_answer = message["role"] == "assistant"
        is_result = all(block["type"] == "tool_result" for block in message["content"])
        return not (is_answer or is_result) and (index == 0 or self._has_restarted)


def _shape(instructions: Instructions) -> Json:
    system = [{"type": "text", "text": text} for text in instructions.system]
    return {"system": system, "tools": msgspec.json.decode(instructions.tools or "[]")}


@lru_cache(maxsize=4096)
def _sent(message: Message) -> tuple[Json, str]:
    """A message with a list for content, and its digest."""
    sent = {"role": message.role, "content": [msgspec.json.decode(block.wire) for block in message.blocks]}
    return sent, _digest(sent)


def _params(model: str) -> Json:
    return {"model": model, "betas": _BETAS, "max_tokens": 64_000, "thinking": {"type": "adaptive"}}


def _marks(shape: Json, params: Json, messages: Sequence[Json], ttl: str) -> Json:
    """The breakpoints, and the digest of the request with them."""
    control = {"type": "ephemeral", **({"ttl": "1h"} if ttl == "1h" else {})}
    last = len(messages) - 1
    paths: list[list[Any]] = [["system", index] for index in range(len(shape["system"]))]
    paths.append(["messages", last, "content", len(messages[last]["content"]) - 1])
    body: Any = msgspec.json.decode(msgspec.json.encode({**shape, **params, "messages": messages}))
    for path in paths:
        at = body
        for step in path:
            at = at[step]
        at["cache_control"] = control
    return {"cacheControl": [{"path": path, "value": control} for path in paths], "requestDigest": _digest(body)}


def _n_shared(before: Sequence[str], now: Sequence[str]) -> int:
    pairs = enumerate(zip(before, now, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(before), len(now)))


def _digest(value: object) -> str:
    return hashlib.sha256(_SORTED.encode(value)).hexdigest()


def _uuid(name: str) -> str:
    digits = hashlib.sha256(name.encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"
