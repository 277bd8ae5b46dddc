"""What readers of trace JSON ask for beyond what a JSON Schema can say. Documents may be of any shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeGuard

from kv_pipeline.inspection.consumers import Consumer
from kv_pipeline.inspection.problems import Problem, schema_problems

Json = Mapping[str, Any]


class Entry(NamedTuple):
    """A request or sub-agent, and where it stands."""

    path: str
    value: Json
    depth: int

    @property
    def is_subagent(self) -> bool:
        """Whether it is a marker with requests of its own."""
        return self.value.get("type") == "subagent"


def entries(trace: object) -> list[Entry]:
    """All requests and sub-agents that are objects, in the order of the file."""
    found: list[Entry] = []
    waiting = [("$", trace, 0)]
    while waiting:  # not by calling itself: nobody bounds how deep files nest
        path, holder, depth = waiting.pop()
        inner = holder.get("requests") if isinstance(holder, Mapping) else None
        own = [
            Entry(f"{path}.requests[{n}]", value, depth)
            for n, value in enumerate(inner if isinstance(inner, list) else ())
            if isinstance(value, Mapping)
        ]
        found += own
        waiting += [(entry.path, entry.value, depth + 1) for entry in reversed(own) if entry.is_subagent]
    return found


def _models_are_listed(trace: Json, found: list[Entry]) -> Iterator[Problem]:
    listed = trace.get("models")
    known = set(filter(_is_text, listed)) if isinstance(listed, list) else set()
    for entry in found if known else ():  # Dynamo finds them by itself if none is listed
        model = entry.value.get("model")
        if not entry.is_subagent and _is_text(model) and model not in known:
            yield Problem(f"{entry.path}.model", "not among the trace's models, which have to cover sub-agents too")


def _subagents_follow_a_request(trace: Json, found: list[Entry]) -> Iterator[Problem]:  # noqa: ARG001
    top = [entry for entry in found if entry.depth == 0]
    n_before = next((n for n, entry in enumerate(top) if not entry.is_subagent), len(top))
    for entry in top[:n_before]:
        yield Problem(entry.path, "a sub-agent before the first request of its parent")


def _completed_subagents_have_requests(trace: Json, found: list[Entry]) -> Iterator[Problem]:  # noqa: ARG001
    for entry in found:
        is_completed = entry.is_subagent and entry.value.get("status") == "completed"
        if is_completed and entry.value.get("requests") == []:
            yield Problem(f"{entry.path}.requests", "a completed sub-agent without requests")


class _Blocks(NamedTuple):
    path: str
    ids: list[Any]
    tokens: int
    block_size: int


def _blocks(trace: Json, found: list[Entry]) -> Iterator[_Blocks]:
    """Requests whose tokens and ids are of the right type."""
    size = trace.get("block_size")
    if not _is_count(size) or not size:
        return
    for entry in found:
        tokens, ids = entry.value.get("in"), entry.value.get("hash_ids")
        if _is_count(tokens) and isinstance(ids, list):
            yield _Blocks(f"{entry.path}.hash_ids", ids, tokens, size)


def _ids_fit_prompts(trace: Json, found: list[Entry]) -> Iterator[Problem]:
    for path, ids, tokens, size in _blocks(trace, found):
        if len(ids) > -(-tokens // size):
            yield Problem(path, "more blocks than the prompt has")


def _full_blocks_only(trace: Json, found: list[Entry]) -> Iterator[Problem]:
    for path, ids, tokens, size in _blocks(trace, found):
        if len(ids) != tokens // size:
            yield Problem(path, "not one for each full block of the prompt")


def _blocks_have_one_size(trace: Json, found: list[Entry]) -> Iterator[Problem]:
    """AIPerf makes up a block's tokens once; an id of a partial block can't stand for a full one too."""
    sizes: dict[object, int] = {}
    for path, ids, tokens, size in _blocks(trace, found):
        for place, number in enumerate(ids):
            own = min(size, tokens - place * size)
            if _is_count(number) and own > 0 and sizes.setdefault(number, own) != own:
                yield Problem(f"{path}[{place}]", "an id that stood for a block of another length before")


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_Rule = Callable[[Json, list[Entry]], Iterator[Problem]]
_AIPERF: Final[tuple[_Rule, ...]] = (_ids_fit_prompts, _blocks_have_one_size)
_AISIMULATE: Final[tuple[_Rule, ...]] = (
    _models_are_listed,
    _subagents_follow_a_request,
    _completed_subagents_have_requests,
)
_RULES: Final[Mapping[Consumer, tuple[_Rule, ...]]] = {
    Consumer.STRICT: (*_AIPERF, *_AISIMULATE, _full_blocks_only),
    Consumer.AIPERF: _AIPERF,
    Consumer.AISIMULATE: _AISIMULATE,
    Consumer.KV_CACHE_TESTER: (),
}


def trace_problems(consumer: Consumer, trace: object) -> list[Problem]:
    """What of a trace a reader refuses.

    Source: for AIPerf its models and `prompt.py`; for AISimulate what 0.13 was found to refuse, and Dynamo's `weka.rs`.
    """
    problems = schema_problems(f"trace-{consumer}", trace)
    if not isinstance(trace, Mapping):
        return problems
    found = entries(trace)
    return problems + [problem for rule in _RULES[consumer] for problem in rule(trace, found)]
