"""What readers of JSON lines ask for: Mooncake, agentic Mooncake, Bailian. Rows may be of any shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from kv_pipeline.export.options import Format
from kv_pipeline.inspection.consumers import Consumer
from kv_pipeline.inspection.problems import Problem, schema_problems

Row = Mapping[str, Any]


class BlockSize:
    """The block sizes that all rows seen so far can have: n ids stand for more than n - 1 blocks and at most n."""

    def __init__(self) -> None:
        self.least = 1
        self.most: int | None = None

    def add(self, n_ids: int, tokens: int) -> bool:
        """Take a row into account; False, and without effect, if it fits none of the sizes that are left."""
        least = max(self.least, -(-tokens // n_ids))
        most = self.most
        if n_ids > 1:
            own = -(-tokens // (n_ids - 1)) - 1
            most = own if most is None else min(most, own)
        if most is not None and least > most:
            return False
        self.least, self.most = least, most
        return True

    @property
    def likely(self) -> int | None:
        """The only size, else the only power of two among them."""
        if self.most is None:
            return None
        if self.least == self.most:
            return self.least
        powers = [1 << n for n in range(32) if self.least <= 1 << n <= self.most]
        return powers[0] if len(powers) == 1 else None


class MooncakeRules:
    """Checks rows one after the other."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._block_size = BlockSize()
        self._times: dict[str, float] = {}

    def add(self, row: object) -> list[Problem]:
        """What the reader refuses of the next row."""
        name = "mooncake" if self._consumer is Consumer.MOONCAKE else f"mooncake-{self._consumer}"
        problems = schema_problems(name, row)
        if problems or not isinstance(row, Mapping):
            return problems
        found = list(_block_size_problems(self._block_size, row))
        return found + (list(self._session_problems(row)) if self._consumer is Consumer.AISIMULATE else [])

    def _session_problems(self, row: Row) -> Iterator[Problem]:
        """Dynamo: a session's first request has no delay; later ones without a delay follow by their time."""
        session = row.get("session_id")
        if session is None:
            return
        time, delay = row.get("timestamp", row.get("created_time")), row.get("delay", row.get("delay_ms"))
        if session not in self._times and delay:
            yield Problem("$.delay", "a delay on the first request of a session")
        if delay is None and time is not None and time < self._times.get(session, time):
            yield Problem("$.timestamp", "before the session's request before, and no delay")
        self._times[session] = self._times.get(session, 0) if time is None else time


class BailianRules:
    """Checks rows one after the other."""

    def __init__(self, consumer: Consumer) -> None:  # noqa: ARG002  (there is one)
        self._block_size = BlockSize()
        self._chats: set[int] = set()

    def add(self, row: object) -> list[Problem]:
        """What the reader refuses of the next row."""
        problems = schema_problems("bailian", row)
        if problems or not isinstance(row, Mapping):
            return problems
        found = list(_block_size_problems(self._block_size, row))
        if row["chat_id"] in self._chats:
            found.append(Problem("$.chat_id", "a chat_id that another row has"))
        if row.get("parent_chat_id", -1) not in self._chats | {-1}:
            found.append(Problem("$.parent_chat_id", "a parent that no earlier row is"))
        self._chats.add(row["chat_id"])
        return found


class AgenticRules:
    """Checks the header, then rows one after the other."""

    def __init__(self, consumer: Consumer) -> None:  # noqa: ARG002  (there is one)
        self._header: Row | None = None
        self._plays: dict[str, set[str]] = {}
        self._rooted: set[str] = set()
        self._requests: set[str] = set()

    def add(self, row: object) -> list[Problem]:
        """What the reader refuses of the next row."""
        if self._header is None:
            self._header = row if isinstance(row, Mapping) else {}
            return schema_problems("agentic-mooncake-header", row)
        problems = schema_problems("agentic-mooncake", row)
        return problems if problems or not isinstance(row, Mapping) else list(self._row_problems(row))

    def _row_problems(self, row: Row) -> Iterator[Problem]:
        size = (self._header or {}).get("block_size")
        if isinstance(size, int) and size > 0 and len(row["hash_ids"]) != -(-row["input_length"] // size):
            yield Problem("$.hash_ids", "not one for each block of the prompt, the partial one included")
        if row["request_id"] in self._requests:
            yield Problem("$.request_id", "a request_id that another row has")
        known = self._plays.setdefault(row["play_id"], set())
        dependencies = row.get("dependencies", [])
        for number, dependency in enumerate(dependencies):
            if dependency["request_id"] not in known:
                yield Problem(f"$.dependencies[{number}].request_id", "no earlier request of the play")
        if not dependencies and row["play_id"] in self._rooted:
            yield Problem("$.dependencies", "a second request of the play that waits for nothing")
        self._rooted.add(row["play_id"])
        self._requests.add(row["request_id"])
        known.add(row["request_id"])


def _block_size_problems(known: BlockSize, row: Row) -> Iterator[Problem]:
    ids, tokens = row.get("hash_ids"), row.get("input_length", row.get("input_tokens"))
    if not ids or not tokens:
        return
    if not known.add(len(ids), tokens):
        yield Problem("$.hash_ids", "no block size fits this row and those before it")


ROW_RULES: Final[Mapping[Format, Callable[[Consumer], MooncakeRules | BailianRules | AgenticRules]]] = {
    Format.MOONCAKE: MooncakeRules,
    Format.BAILIAN: BailianRules,
    Format.AGENTIC_MOONCAKE: AgenticRules,
}
"""Format to what checks its rows for a reader."""
