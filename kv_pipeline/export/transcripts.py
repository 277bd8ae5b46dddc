"""Recovered conversations as transcripts: JSONL that `kv-pipeline run` reads like the client's own.

    <out>/<user>/projects/recovered/<session>.jsonl
    <out>/<user>/projects/recovered/<session>/subagents/agent-<id>.jsonl and agent-<id>.meta.json

They hold structure and no content: which agent received which answer, in what order, who started it, and where the
context was compacted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import polars as pl

from kv_pipeline.names import safe_name
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS
from kv_pipeline.store import Store

PROJECT: Final = "recovered"
MAIN_AGENT: Final = "main"


def write_transcripts(store: Store, out: Path) -> list[Path]:
    """Write a file for each agent of each recovered conversation that has requests.

    Files of the same name are replaced, others left alone.

    Returns:
        The transcripts, without meta files, in sorted order.
    """
    written = []
    for user_id in store.partitions(CONVERSATIONS.name):
        known = store.read(CONVERSATIONS, [user_id]).filter(pl.col("n_requests") > 0, structure="content")
        ids = ["conversation_id", "session_id"]
        agents = store.read(AGENTS, [user_id]).join(known.select(ids), on="conversation_id")
        requests = store.read(CONVERSATION_REQUESTS, [user_id])
        by_agent = requests.partition_by("conversation_id", "agent_id", as_dict=True, maintain_order=True)
        folder = out / user_id / "projects" / PROJECT
        for agent in agents.filter(pl.col("n_requests") > 0).iter_rows(named=True):
            rows = by_agent[agent["conversation_id"], agent["agent_id"]]
            written.append(_write_agent(folder, agent, rows))
    return sorted(written)


def _write_agent(folder: Path, agent: dict[str, Any], rows: pl.DataFrame) -> Path:
    session = _name_of(agent["session_id"])
    if agent["agent_id"] == MAIN_AGENT:
        path = folder / f"{session}.jsonl"
        _write(path, _records(session, agent, rows))
        return path
    path = folder / session / "subagents" / f"agent-{_name_of(agent['agent_id'])}.jsonl"
    _write(path, _records(session, agent, rows))
    _write(path.with_suffix(".meta.json"), [_meta(agent)])
    return path


def _name_of(safe: str) -> str:
    """The name that `safe_name` makes this of, if it can stand in a path."""
    name = unquote(safe)
    return name if "/" not in name and "\0" not in name and safe_name(name) == safe and len(name) < 200 else safe


def _records(session: str, agent: dict[str, Any], rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    is_main = agent["agent_id"] == MAIN_AGENT
    common = {"sessionId": session, "isSidechain": not is_main, "isRecovered": True}
    common |= {} if is_main else {"agentId": agent["agent_id"]}
    before = None
    columns = ("message_id", "requested_at_utc", "is_after_compaction")
    for number, (message_id, requested_at, is_after_compaction) in enumerate(rows.select(columns).iter_rows()):
        at = {"timestamp": requested_at.isoformat(timespec="microseconds").replace("+00:00", "Z")}
        if is_after_compaction:
            uuid = f"{agent['agent_id']}-{number}-compaction"
            yield {"type": "system", "subtype": "compact_boundary", "uuid": uuid, "parentUuid": None} | common | at
            before = uuid
        message = {"id": message_id, "role": "assistant", "content": []}
        uuid = f"{agent['agent_id']}-{number}"
        yield {"type": "assistant", "uuid": uuid, "parentUuid": before, "message": message} | common | at
        before = uuid


def _meta(agent: dict[str, Any]) -> dict[str, Any]:
    parent = agent["parent_agent_id"]
    known = {
        "agentType": agent["subagent_type"],
        "toolUseId": agent["tool_use_id"],
        "parentAgentId": None if parent == MAIN_AGENT else parent,
        "isFork": agent["is_fork"] or None,
    }
    return {key: value for key, value in known.items() if value is not None}


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    temporary.replace(path)
