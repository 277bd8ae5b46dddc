"""What is in a trace file, as numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Contents:
    """Counts of a file; what a format does not say is None, or 0 where it could be counted.

    Attributes:
        n_traces: Traces: conversations, plays, or sessions.
        n_requests: Requests.
        n_subagents: Sub-agents, nested ones included.
        prompt_tokens: Tokens of all prompts.
        output_tokens: Tokens of all answers.
        block_references: Ids of blocks, as often as they are there.
        distinct_blocks: Different ids.
        block_size: Tokens a block.
        hash_id_scope: `local` or `global`.
        duration_s: From the first request to the last.
        models: Models in order of first use.
    """

    n_traces: int = 0
    n_requests: int = 0
    n_subagents: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    block_references: int = 0
    distinct_blocks: int = 0
    block_size: int | None = None
    hash_id_scope: str | None = None
    duration_s: float | None = None
    models: list[str] = field(default_factory=list)


class Counter:
    """Adds up requests, taking of each what is there and of the right type."""

    def __init__(self) -> None:
        self.contents = Contents()
        self._blocks: defaultdict[str | None, set[int]] = defaultdict(set)
        self._models: dict[str, None] = {}
        self._times_s: list[float] = []

    def request(self, row: Mapping[str, Any], tokens_key: str, output_key: str, owner: str | None = None) -> None:
        """Add a request; ids of different owners are different blocks."""
        self.contents.n_requests += 1
        self.contents.prompt_tokens += _number(row.get(tokens_key))
        self.contents.output_tokens += _number(row.get(output_key))
        ids = row.get("hash_ids")
        if isinstance(ids, list):
            self.contents.block_references += len(ids)
            self._blocks[owner].update(number for number in ids if isinstance(number, int))
        if isinstance(row.get("model"), str):
            self._models[row["model"]] = None

    def time(self, time_s: object) -> None:
        """Add a request's time; keeps the first and the last."""
        if isinstance(time_s, int | float):
            self._times_s = [min([time_s, *self._times_s]), max([time_s, *self._times_s])]

    def result(self) -> Contents:
        """The sums."""
        self.contents.distinct_blocks = sum(map(len, self._blocks.values()))
        self.contents.models = list(self._models)
        self.contents.duration_s = self._times_s[-1] - self._times_s[0] if self._times_s else None
        return self.contents


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
