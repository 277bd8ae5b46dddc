"""Transcript files as the two client generations write them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec

from kv_pipeline.demo.wire import Json, compact
from kv_pipeline.demo.wording import uuid_of


def utc_text(at_ms: int) -> str:
    """A transcript timestamp: UTC with milliseconds."""
    moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


class Transcript:
    """One transcript, appended to record by record.

    Args:
        path: The file.
        common: Fields that every chained record repeats (session, folder, version, ...).
        rng: Where record uuids come from.
        agent_id: The sub-agent whose transcript it is, None for a session's.
        is_modern: Whether the common fields come last, as the newer client writes them.
    """

    def __init__(self, path: Path, common: Json, rng: Random, agent_id: str | None, *, is_modern: bool) -> None:
        self.path = path
        self.last_uuid: str | None = None
        self._common, self._rng, self._agent_id, self._is_modern = common, rng, agent_id, is_modern
        path.parent.mkdir(parents=True, exist_ok=True)

    def chain(self, record: Json, at_ms: int, *, parent: str | None = "last") -> str:
        """Append a record that follows the previous one, and return its uuid."""
        uuid = uuid_of(self._rng)
        parent = self.last_uuid if parent == "last" else parent
        head: Json = {"parentUuid": parent, "isSidechain": self._agent_id is not None}
        agent = {} if self._agent_id is None else {"agentId": self._agent_id}
        tail = {"uuid": uuid, "timestamp": utc_text(at_ms)}
        if self._is_modern:
            self.write({**head, **agent, **record, **tail, **self._common})
        else:
            self.write({**head, **self._common, **agent, **record, **tail})
        self.last_uuid = uuid
        return uuid

    @property
    def version(self) -> str:
        """The client's."""
        return str(self._common["version"])

    def note(self, record: Json) -> None:
        """Append a record that stands outside the chain."""
        self.write({**record, "sessionId": self._common["sessionId"]})

    def queued(self, text: str, at_ms: int) -> None:
        """The two records with which the client queues a prompt and takes it."""
        for operation, content in (("enqueue", {"content": text}), ("dequeue", {})):
            head = {"type": "queue-operation", "operation": operation, "timestamp": utc_text(at_ms)}
            self.note({**head, **content})

    def records(self) -> Iterator[Json]:
        """What was written so far."""
        with self.path.open("rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line)

    def copy(self, record: Json, content: list[Json] | None = None) -> None:
        """Append an older record again, as a resumed session does: only uuids and session id are new."""
        record = {**record, "parentUuid": self.last_uuid, "uuid": uuid_of(self._rng), **self._session()}
        if content is not None:
            record["message"] = {**record["message"], "content": content}
        self.write(record)
        self.last_uuid = record["uuid"]

    def write(self, record: Json) -> None:
        """Append a record as it is."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(compact(record) + "\n")

    def _session(self) -> Json:
        return {"sessionId": self._common["sessionId"]}
