"""The slow, obvious definition of everything the package computes cleverly.

Nothing of `kv_pipeline.core` or `kv_pipeline.sources` is used here: bodies are parsed whole, copied, serialised and
tokenised whole, and every list is rebuilt for every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import struct
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tiktoken

import kv_pipeline

VOCABULARY = Path(kv_pipeline.__file__).parent / "core" / "vocabulary" / "cl100k_base.tiktoken"
BILLING_HEADER = "x-anthropic-billing-header:"
CHURNING = ("cch", "cc_prev_req", "cc_prompt_id")


@cache
def encoding() -> tiktoken.Encoding:
    """tiktoken's own cl100k_base, special tokens and all, from our vocabulary file in place of a download."""
    address = b"https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    with TemporaryDirectory() as folder:
        shutil.copy(VOCABULARY, Path(folder) / hashlib.sha1(address, usedforsecurity=False).hexdigest())
        os.environ["TIKTOKEN_CACHE_DIR"] = folder
        try:
            return tiktoken.get_encoding("cl100k_base")
        finally:
            os.environ.pop("TIKTOKEN_CACHE_DIR")
            if before is not None:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def encode(text: str) -> list[int]:
    return encoding().encode_ordinary(text)


repeated_encode = lru_cache(maxsize=8)(encode)
"""For sections that a hundred requests repeat; for real captures only a matter of patience."""


# --- Requests to tokens -----------------------------------------------------------------------------------------------


def cleaned(value: Any, payloads: list[tuple[str, str]]) -> Any:
    """A deep copy without `cache_control` and `signature`; base64 data goes to `payloads` as (media type, data)."""
    if isinstance(value, list):
        return [cleaned(item, payloads) for item in value]
    if not isinstance(value, dict):
        return value
    copy = dict(value)
    if copy.get("type") == "base64" and isinstance(copy.get("data"), str):
        payloads.append((str(copy.get("media_type")), copy["data"]))
        copy["data"] = ""
    return {k: cleaned(v, payloads) for k, v in copy.items() if k not in ("cache_control", "signature")}


def zeroed(header: str) -> str:
    """A billing header with zeros for the values that change per turn."""
    words = re.split(r"([;\s])", header)
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if equals and name in CHURNING:
            words[index] = f"{name}={'0' * len(value)}"
    return "".join(words)


def without_churn(system: Any) -> Any:
    if isinstance(system, str):
        return zeroed(system) if system.startswith(BILLING_HEADER) else system
    if not isinstance(system, list):
        return system
    return [
        {**block, "text": without_churn(block["text"])}
        if isinstance(block, dict) and isinstance(block.get("text"), str)
        else block
        for block in system
    ]


def stand_ins(salt: bytes, media_type: str, data: str) -> list[int]:
    """Stand-in ids of one payload: the words of its salted digest with the highest bit set, repeated as needed."""
    digest = hashlib.blake2b(data.encode("utf-8", "surrogatepass"), key=salt, digest_size=32).digest()
    words = [word | 1 << 31 for word in struct.unpack("<8I", digest)]
    n_tokens = pdf_tokens(data) if media_type == "application/pdf" else png_tokens(data)
    return [words[index % 8] for index in range(n_tokens)]


def png_tokens(data: str) -> int:
    """Width x height / 750 after scaling the longer edge to 1568, at most 1600; 1600 for what is no PNG."""
    content = decoded(data)
    if not (content.startswith(b"\x89PNG\r\n\x1a\n") and content[12:16] == b"IHDR" and len(content) >= 24):
        return 1600
    width, height = struct.unpack(">II", content[16:24])
    if not width or not height:
        return 1600
    if max(width, height) > 1568:
        width, height = width * 1568 / max(width, height), height * 1568 / max(width, height)
    return max(1, min(1600, math.ceil(width * height / 750)))


def pdf_tokens(data: str) -> int:
    pages = re.findall(rb"/Type ?/Page(?!s)", decoded(data))
    return 2250 * max(1, len(pages))


def decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data.encode("utf-8", "surrogatepass"))
    except ValueError:
        return b""


@dataclass(frozen=True)
class Prompt:
    """A request's token ids by section, and its block hashes."""

    tools: list[int]
    system: list[int]
    messages: list[int]
    hashes: list[int]

    @property
    def tokens(self) -> list[int]:
        return self.tools + self.system + self.messages


def prompt(body: dict[str, Any], salt: bytes, block_size: int, *, keep_billing_header: bool = False) -> Prompt:
    tools = whole_section_tokens(body.get("tools"), salt)
    system = body.get("system")
    system = whole_section_tokens(system if keep_billing_header else without_churn(system), salt)
    messages = messages_tokens(body["messages"], salt)
    return Prompt(tools, system, messages, block_hashes(tools + system + messages, salt, block_size))


def whole_section_tokens(value: Any, salt: bytes) -> list[int]:
    """Tools or system: payloads' stand-ins, then the text; nothing for a section that was not sent."""
    if value is None:
        return []
    payloads: list[tuple[str, str]] = []
    text = compact(cleaned(value, payloads))
    return [token for payload in payloads for token in stand_ins(salt, *payload)] + repeated_encode(text)


def messages_tokens(messages: list[Any], salt: bytes) -> list[int]:
    """The ids of the section's whole string, with each message's stand-ins put in before its own ids.

    A message's own ids start behind `{"` when it begins with that and an ASCII letter. Another message has no ids of
    its own, it counts with the one before it; if it is the first, from the section's start.
    """
    text, places = "[", []
    own_start = 0
    for index, message in enumerate(messages):
        payloads: list[tuple[str, str]] = []
        message_text = compact(cleaned(message, payloads))
        text += "," if index else ""
        if re.match(r'\{"[A-Za-z]', message_text):
            own_start = len(text) + 2
        places += [(own_start, stand_ins(salt, *payload)) for payload in payloads]
        text += message_text
    tokens = encode(text + "]")
    for place, ids in reversed(places):
        n_before = len(encode(text[:place]))
        assert encode(text[:place]) == tokens[:n_before], "stand-ins would split a token"
        tokens = tokens[:n_before] + ids + tokens[n_before:]
    return tokens


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def block_hashes(tokens: list[int], salt: bytes, block_size: int) -> list[int]:
    hashes, parent = [], bytes(8)
    for number in range(len(tokens) // block_size):
        block = tokens[number * block_size : (number + 1) * block_size]
        content = parent + b"".join(token.to_bytes(4, "little") for token in block)
        parent = hashlib.blake2b(content, key=salt, digest_size=8).digest()
        hashes.append(int.from_bytes(parent, "little"))
    return hashes


def tail_hash(tokens: list[int], salt: bytes, block_size: int) -> int | None:
    """The hash of what is left behind the last full block, as if it were a block."""
    n_full = len(tokens) // block_size * block_size
    if n_full == len(tokens):
        return None
    parents = block_hashes(tokens, salt, block_size)
    parent = parents[-1].to_bytes(8, "little") if parents else bytes(8)
    content = parent + b"".join(token.to_bytes(4, "little") for token in tokens[n_full:])
    return int.from_bytes(hashlib.blake2b(content, key=salt, digest_size=8).digest(), "little")


def numbered(paths: Iterable[list[int]]) -> list[list[int]]:
    """Hashes as dense numbers from 1 in order of first appearance."""
    seen: dict[int, int] = {}
    return [[seen.setdefault(block, len(seen) + 1) for block in path] for path in paths]


def common_prefix(path: Sequence[int], other: Sequence[int]) -> int:
    n = 0
    while n < min(len(path), len(other)) and path[n] == other[n]:
        n += 1
    return n


# --- Cache ------------------------------------------------------------------------------------------------------------


def hit_blocks(
    uses: Iterable[tuple[Hashable, float, list[int]]], lifetime_s: float, *, is_chained: bool = False
) -> list[int]:
    """Blocks model: uses are (cache, time, path) in order of time.

    What a cache holds are whole prefixes; of a path of chained hashes, each stands for its whole prefix already.
    """
    caches: dict[Hashable, dict[Hashable, float]] = defaultdict(dict)
    hits = []
    for name, time_s, path in uses:
        held = caches[name]
        prefixes = list(path) if is_chained else [tuple(path[: n + 1]) for n in range(len(path))]
        n_hit = 0
        while n_hit < len(prefixes) and prefixes[n_hit] in held and time_s - held[prefixes[n_hit]] <= lifetime_s:
            n_hit += 1
        hits.append(n_hit)
        held.update(dict.fromkeys(prefixes, time_s))
    return hits


# --- Twins ------------------------------------------------------------------------------------------------------------


def twins(rows: Iterable[tuple[int, bool, Hashable]]) -> dict[int, int]:
    """Replay row to the streaming row it repeats; rows are (row id, is streaming, content) in order."""
    unpaired: dict[Hashable, list[int]] = defaultdict(list)
    latest: dict[Hashable, int] = {}
    pairs = {}
    for row_id, is_streaming, content in rows:
        if is_streaming:
            unpaired[content].append(row_id)
            latest[content] = row_id
        elif unpaired[content]:
            pairs[row_id] = unpaired[content].pop(0)
        elif content in latest:
            pairs[row_id] = latest[content]
    return pairs
