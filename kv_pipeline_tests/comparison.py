"""A store compared with the oracle, request by request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kv_pipeline.core.validation import conversation_paths
from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import ExportOptions, HashIdScope
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS
from kv_pipeline.store import Store
from kv_pipeline_tests import oracle, oracle_traces


def assert_user_as_defined(store: Store, folder: Path, out: Path) -> int:
    """Every traced request of a user is what the oracle makes of the landing folder; returns how many there are."""
    turns = oracle_traces.turns(folder)
    sessions = dict(oracle_traces.by_session(turns))
    keys = [key for key in store.partitions(TRACES.name) if key.startswith(folder.name + "/")]
    assert keys == sorted(f"{folder.name}/{session}" for session in sessions)
    exported = _exported_paths(store, out, keys)
    for session, found in sessions.items():
        key = f"{folder.name}/{session}"
        prompts = [oracle.prompt(turn.billed.body, store.salt, store.settings.block_size) for turn in found]
        _assert_identity(store, key, found)
        _assert_blocks(store, key, prompts)
        _assert_rows(store, key, found, prompts)
        _assert_hits(store, key, found, prompts)
        assert exported[key] == _numbered(found, prompts)
    return len(turns)


def _assert_identity(store: Store, key: str, found: list[oracle_traces.Turn]) -> None:
    requests = store.read(CONVERSATION_REQUESTS, [key.partition("/")[0]]).filter(pl.col("conversation_id") == key)
    columns = requests.select("agent_id", "message_id", "billed_row_id", "answer_row_id", "database_id")
    assert columns.rows() == [
        (t.agent, t.answer.message_id, t.billed.row_id, t.answer.row_id, f"{key.partition('/')[0]}/{t.billed.database}")
        for t in found
    ]


def _assert_blocks(store: Store, key: str, prompts: list[oracle.Prompt]) -> None:
    blocks = store.read(TOKENIZED_BLOCKS, [key])
    assert blocks.select("tools_tokens", "system_tokens", "messages_tokens", "n_blocks").rows() == [
        (len(p.tools), len(p.system), len(p.messages), len(p.hashes)) for p in prompts
    ]
    hashes = blocks["new_block_hashes"].explode().drop_nulls().to_numpy()
    assert [hashes[path].tolist() for path in conversation_paths(blocks)] == [p.hashes for p in prompts]


def _assert_rows(store: Store, key: str, found: list[oracle_traces.Turn], prompts: list[oracle.Prompt]) -> None:
    rows = store.read(TRACES, [key])
    start = min(turn.billed.time for turn in found)
    expected = [
        (
            len(p.tokens), turn.answer.usage.get("output_tokens", 0), turn.answer.stop or "", turn.answer.output_types,
            turn.billed.api_time_s, turn.billed.ttft_s if turn.billed.body.get("stream") else None,
            "s" if turn.billed.body.get("stream") else "n",
        )
        for turn, p in zip(found, prompts, strict=True)
    ]  # fmt: skip
    columns = ("input_tokens", "output_tokens", "stop_reason", "output_types", "api_time_s", "ttft_s", "type")
    assert rows.select(columns).rows() == expected
    hashes = [p.hashes for p in prompts]
    assert rows["input_types"].to_list() == oracle_traces.input_types(found, hashes)
    assert rows["think_time_s"].to_list() == pytest.approx(oracle_traces.think_times_s(found))
    assert rows["t_s"].to_list() == pytest.approx([(turn.billed.time - start).total_seconds() for turn in found])


def _assert_hits(store: Store, key: str, found: list[oracle_traces.Turn], prompts: list[oracle.Prompt]) -> None:
    report = store.read(VALIDATION_REPORT, [key]).sort("request_index")
    uses = [(t.billed.body["model"], t.billed.time.timestamp(), p.hashes) for t, p in zip(found, prompts, strict=True)]
    rows = report.filter((pl.col("scope") == "conversation") & (pl.col("lifetime") == "5m"))
    assert rows["hit_blocks"].to_list() == oracle.hit_blocks(uses, 300, is_chained=True)
    reads = [turn.billed.usage["cache_read_input_tokens"] for turn in found]
    assert rows["billed_read_tokens"].to_list() == reads


def _exported_paths(store: Store, out: Path, keys: list[str]) -> dict[str, dict[str, list[list[int]]]]:
    """Published block numbers by conversation and agent."""
    result = export_traces(store, out, ExportOptions(hash_ids=HashIdScope.LOCAL), keys)
    return {key: _by_agent(path) for key, path in zip(keys, result.files, strict=True)}


def _by_agent(path: Path) -> dict[str, list[list[int]]]:
    trace = json.loads(path.read_bytes())
    agents = requests_by_agent(trace["requests"])
    for request in (request for own in agents.values() for request in own):
        assert len(request["hash_ids"]) == request["in"] // trace["block_size"]
    return {agent: [request["hash_ids"] for request in own] for agent, own in agents.items()}


def requests_by_agent(entries: list[dict[str, Any]], agent: str = "main") -> dict[str, list[dict[str, Any]]]:
    """Requests of a trace by agent; its own main thread is `main`."""
    found: dict[str, list[dict[str, Any]]] = {agent: [entry for entry in entries if entry["type"] != "subagent"]}
    for entry in entries:
        if entry["type"] == "subagent":
            assert entry["agent_id"] not in found
            found |= requests_by_agent(entry["requests"], entry["agent_id"])
    return found


def _numbered(found: list[oracle_traces.Turn], prompts: list[oracle.Prompt]) -> dict[str, list[list[int]]]:
    agents: dict[str, list[list[int]]] = {}
    for turn, path in zip(found, oracle.numbered(p.hashes for p in prompts), strict=True):
        agents.setdefault(turn.agent, []).append(path)
    return agents
