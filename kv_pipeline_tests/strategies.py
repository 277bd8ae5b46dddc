"""Hypothesis strategies: JSON as clients send it, and as nobody should."""

from __future__ import annotations

import base64
import struct
from typing import Any

from hypothesis import strategies as st

SPECIALS = ("<|endoftext|>", "<|fim_prefix|>", "<|endofprompt|>", "'s", "'LL", "x-anthropic-billing-header:")
CONTROLS = "\x00\x01\t\n\r\x0b\x1f\x7f\x85\u2028"
MIXED = st.text(st.sampled_from("aZ09 _-'\"\\{}[](),:;.!\n\r\té日🙂ß\u0300" + CONTROLS), max_size=25)

texts = st.one_of(
    st.text(max_size=20),  # any Unicode, without surrogates
    MIXED,
    st.text(st.characters(categories=["Cs", "L", "Zs"]), max_size=6),  # with lone surrogates
    st.sampled_from(SPECIALS),
    st.builds(lambda character, n: character * n, st.sampled_from(" a'{9\n=é🙂"), st.integers(1, 120)),
)
keys = st.one_of(
    st.sampled_from(["role", "content", "type", "text", "id", "a", "Z", "cache_control", "signature"]),
    st.sampled_from(["", " ", "1st", "_x", "é", '"', "{", "[{", "\x00", "-", "🙂", "\\"]),
    MIXED,
)
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.just(-0.0))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
json_values = st.recursive(
    scalars,
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(keys, below, max_size=4)),
    max_leaves=10,
)
cache_controls = st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, None, "odd"])


def png(width: int, height: int) -> str:
    """Base64 of as much of a PNG as tells its size."""
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    return base64.b64encode(header + bytes(9)).decode()


def pdf(pages: int) -> str:
    content = b"%PDF-1.4\n<< /Type /Pages >>\n" + b"<< /Type /Page >>\n" * pages
    return base64.b64encode(content).decode()


pngs = st.builds(png, st.integers(0, 60), st.integers(0, 60))
sources = st.one_of(
    st.builds(lambda data: {"type": "base64", "media_type": "image/png", "data": data}, pngs),
    st.builds(lambda data: {"data": data, "media_type": "image/png", "type": "base64"}, pngs),
    st.just({"type": "base64", "data": 7}),
    st.just({"type": "url", "data": png(40, 40)}),
)
blocks = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("text"), "text": texts}, optional={"cache_control": cache_controls, "signature": texts}
    ),
    st.fixed_dictionaries({"cache_control": cache_controls, "type": st.just("thinking"), "signature": texts}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": texts, "input": json_values}),
    st.fixed_dictionaries({"type": st.just("image"), "source": sources}),
    json_values,
)
contents = st.one_of(texts, st.lists(blocks, max_size=3))
roles = st.sampled_from(["user", "assistant"])
messages = st.one_of(
    st.fixed_dictionaries({"role": roles, "content": contents}),
    st.fixed_dictionaries({"content": contents, "role": roles}),
    st.fixed_dictionaries({"1": st.just(0), "content": contents}),  # must stay joined to the message before it
    st.just({}),
    json_values,
)
headers = st.builds(
    "x-anthropic-billing-header: cc_version=2.1.{0}; cch={1}; cc_prev_req={2}; cc_prompt_id={1};".format,
    st.integers(0, 9),
    st.text("0123456789abcdef", max_size=6),
    st.text("abcXYZ_-0", max_size=6),
)
systems = st.one_of(
    st.none(),
    texts,
    headers,
    st.builds(lambda header, more: [{"type": "text", "text": header}, *more], headers, st.lists(blocks, max_size=2)),
    st.lists(blocks, max_size=2),
)
system_versions = st.one_of(
    st.lists(systems, min_size=1, max_size=2),
    st.builds(
        lambda versions, more: [[{"type": "text", "text": header}, *more] for header in versions],
        st.lists(headers, min_size=2, max_size=3),
        st.lists(blocks, max_size=2),
    ),
)
"""System prompts of one conversation: unrelated ones, or one under a changing billing header."""
tools = st.one_of(st.none(), st.lists(json_values, max_size=2))


@st.composite
def bodies(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Requests of one conversation: mostly growing, sometimes forked, rewritten or begun anew."""
    pool = draw(st.lists(messages, min_size=1, max_size=6))
    some_tools, some_systems = draw(st.lists(tools, min_size=1, max_size=2)), draw(system_versions)
    requests: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 5))):
        before = draw(st.sampled_from(requests))["messages"] if requests else []
        kept = before[: draw(st.integers(0, len(before)))] if draw(st.booleans()) else before
        added = draw(st.lists(st.sampled_from(pool), max_size=3))
        sections = {"tools": draw(st.sampled_from(some_tools)), "system": draw(st.sampled_from(some_systems))}
        requests.append({**sections, "messages": [*kept, *added]})
    return requests


sizes = st.sampled_from([1, 2, 3, 7, 16, 64])
