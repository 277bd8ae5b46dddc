"""Breakpoints: as recorded, or where clients are known to put them.

Seen in clients 2.0.30 and 2.1.329: on the last two system blocks and on the last block of the last message; before 2.1
also on that of the message before it. Source: 448 bodies of both; 116 side requests have none, 2 compactions mark the
last message but one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from kv_pipeline.sources.transcript_requests.messages import Sent
from kv_pipeline.sources.transcript_requests.recorded import Marker
from kv_pipeline.sources.transcript_requests.records import value_of

_SECTIONS: Final = ("tools", "system", "messages")
_MARKED_SYSTEM_BLOCKS: Final = 2
_ONE_MESSAGE_SINCE: Final = (2, 1)
_VERSION: Final = re.compile(r"(\d{1,9})\.(\d{1,9})")
_UNMARKABLE: Final = ("thinking", "redacted_thinking")

Breakpoint = dict[str, object]
"""A breakpoint as RAW_REQUESTS has it."""


def recorded_breakpoints(markers: Iterable[Marker]) -> list[Breakpoint]:
    """Breakpoints of a recorded request in prompt order."""
    found = [_breakpoint(marker) for marker in markers]
    return sorted(found, key=lambda b: (_SECTIONS.index(str(b["section"])), b["item_index"] or 0, b["block_index"]))


def assumed_message_breakpoints(n_messages: int, last: Sequence[Sent], version: str, ttl: str) -> list[Breakpoint]:
    """Breakpoints on messages, in prompt order.

    Args:
        n_messages: Messages of the request.
        last: The last of them.
        version: The client's.
        ttl: Lifetime that it asks for.
    """
    marked = last[-marked_messages(version) :]
    return [
        {"section": "messages", "item_index": n_messages - behind, "block_index": len(message.blocks) - 1, "ttl": ttl}
        for behind, message in zip(range(len(marked), 0, -1), marked, strict=True)
        if can_be_marked(message)
    ]


def assumed_system_breakpoints(n_blocks: int, ttl: str) -> list[Breakpoint]:
    """Breakpoints on a system prompt of some blocks."""
    indexes = range(max(0, n_blocks - _MARKED_SYSTEM_BLOCKS), n_blocks)
    return [{"section": "system", "item_index": None, "block_index": index, "ttl": ttl} for index in indexes]


def marked_messages(version: str) -> int:
    """How many of the last messages a client marks."""
    found = _VERSION.match(version)
    return 2 if found and (int(found[1]), int(found[2])) < _ONE_MESSAGE_SINCE else 1


def can_be_marked(message: Sent) -> bool:
    """Whether a breakpoint may sit on the last block of a message: on thinking none may."""
    value = value_of(message.blocks[-1]) if message.blocks else None
    return isinstance(value, dict) and value.get("type") not in _UNMARKABLE


def _breakpoint(marker: Marker) -> Breakpoint:
    section, index, *rest = marker.path
    if section != "messages":
        return {"section": section, "item_index": None, "block_index": index, "ttl": marker.ttl}
    block = next((step for step in rest if isinstance(step, int)), 0)
    return {"section": section, "item_index": index, "block_index": block, "ttl": marker.ttl}
