"""The API's prompt cache, slow and obvious: prompts are lists, prefixes tuples, and all is looked up anew."""

from __future__ import annotations

from typing import NamedTuple

LIFETIME_S = {"5m": 300.0, "1h": 3600.0}


class Asked(NamedTuple):
    """A request: its blocks as (section, kind, name, tokens), markers as (block, ttl), and when it came."""

    blocks: list[tuple[str, str, str, int]]
    marks: dict[int, str]
    started_s: float
    began_s: float
    agent: str | None


class Billed(NamedTuple):
    read: int
    write_5m: int
    write_1h: int
    fresh: int


def bill_all(requests: list[Asked], minimum_tokens: int, look_back: int, collapses: bool) -> list[Billed]:
    entries: dict[tuple, dict] = {}
    return [_bill(entries, request, minimum_tokens, look_back, collapses) for request in requests]


def _bill(entries, request, minimum_tokens, look_back, collapses) -> Billed:
    prefixes = [tuple(block[:3] for block in request.blocks[: n + 1]) for n in range(len(request.blocks))]
    lengths = [sum(block[3] for block in request.blocks[: n + 1]) for n in range(len(request.blocks))]
    marks = sorted(request.marks)[:4]
    hit = max((n for mark in marks for n in _window(request.blocks, mark, look_back, collapses)
               if _can_read(entries.get(prefixes[n]), request)), default=None)  # fmt: skip
    written = [m for m in marks if lengths[m] >= minimum_tokens]
    _use(entries, request, prefixes, hit, written)
    read = 0 if hit is None else lengths[hit]
    ends = [lengths[m] for m in written if hit is None or m > hit]
    hour_ends = [lengths[m] for m in written if (hit is None or m > hit) and request.marks[m] == "1h"]
    hour_end = max([read, *hour_ends])
    end = max([hour_end, *ends])
    return Billed(read, end - hour_end, hour_end - read, (lengths[-1] if lengths else 0) - end)


def _window(blocks, mark, look_back, collapses):
    """Blocks that a marker looks at: itself and those before it, a run of tool blocks counting once if so ruled."""
    seen = 0
    for n in range(mark, -1, -1):
        kind = blocks[n][1]
        is_run = collapses and n < mark and kind == blocks[n + 1][1] and kind in ("tool_use", "tool_result")
        seen += 0 if is_run else 1
        if seen > look_back:
            return
        yield n


def _can_read(entry, request) -> bool:
    if entry is None or request.started_s - entry["used_s"] > entry["lifetime_s"]:
        return False
    own = request.agent is not None and entry["agent"] == request.agent
    return own or entry["began_s"] <= request.started_s


def _use(entries, request, prefixes, hit, written) -> None:
    if hit is not None:
        entries[prefixes[hit]]["used_s"] = request.started_s
    for mark in written:
        entry = entries.get(prefixes[mark])
        lifetime_s = LIFETIME_S[request.marks[mark]]
        if entry is not None and request.started_s - entry["used_s"] <= entry["lifetime_s"]:
            entry["used_s"] = request.started_s
            entry["lifetime_s"] = max(entry["lifetime_s"], lifetime_s)
        else:
            entries[prefixes[mark]] = {"used_s": request.started_s, "began_s": request.began_s,
                                       "lifetime_s": lifetime_s, "agent": request.agent}  # fmt: skip
