"""What an export has to hold, read from a store or from trace files the slow way, and formats compared to it."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from kv_pipeline.core.validation import conversation_paths
from kv_pipeline.export.agentic_mooncake import HEADER_DECODER
from kv_pipeline.export.agentic_mooncake import ROW_DECODER as AGENTIC_DECODER
from kv_pipeline.export.bailian import ROW_DECODER as BAILIAN_DECODER
from kv_pipeline.export.mooncake import ROW_DECODER as MOONCAKE_DECODER
from kv_pipeline.export.oracle_general import read_records
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES
from kv_pipeline.schemas.conversations import AGENTS


class TrueRequest(NamedTuple):
    """A request as it was recorded; `prefixes` names what stands before a place, None if that is not known."""

    trace: str
    agent: str
    parent: str | None
    status: str | None
    at_s: float
    t_s: float
    api_time_s: float | None
    model: str
    n_in: int
    n_out: int
    prefixes: dict[int, Hashable]

    def keys(self, block_size: int, *, with_tail: bool = True) -> list[Hashable]:
        """What each block stands for, the partial one included; None if it is not known."""
        ends = list(range(block_size, self.n_in + 1, block_size))
        if with_tail and self.n_in % block_size:
            ends.append(self.n_in)
        return [self.prefixes.get(end) for end in ends]


def of_store(store) -> list[TrueRequest]:
    """In trace order, conversation after conversation."""
    return [request for key in store.partitions(TRACES.name) for request in _of_conversation(store, key)]


def _of_conversation(store, key):
    traces, blocks = store.read(TRACES, [key]), store.read(TOKENIZED_BLOCKS, [key])
    agents = store.read(AGENTS, [key.partition("/")[0]]).filter(pl.col("conversation_id") == key).to_dicts()
    facts = {agent["agent_id"]: agent for agent in agents}
    hashes = blocks["new_block_hashes"].explode().drop_nulls().to_list()
    size = store.settings.block_size
    for row, path, tail in zip(traces.to_dicts(), conversation_paths(blocks), blocks["tail_hash"], strict=True):
        prefixes = {size * (n + 1): hashes[number] for n, number in enumerate(path.tolist())}
        if tail is not None:
            prefixes[row["input_tokens"]] = ("tail", tail)
        agent = facts[row["agent_id"]]
        yield TrueRequest(
            key.replace("/", "_"), row["agent_id"], agent["parent_agent_id"], agent["status"],
            row["requested_at_utc"].timestamp(), row["t_s"], row["api_time_s"], row["model"], row["input_tokens"],
            row["output_tokens"], prefixes,
        )  # fmt: skip


def of_traces(files: Iterable[Path]) -> list[TrueRequest]:
    """Traces whose nested times count from the marker."""
    return [request for path in files for request in sorted(_of_file(path), key=lambda r: r.t_s)]


def _of_file(path):
    trace = json.loads(path.read_bytes())

    def walk(entries, base_s, agent, parent, status):
        for entry in entries:
            if entry["type"] == "subagent":
                yield from walk(entry["requests"], base_s + entry["t"], entry["agent_id"], agent, entry["status"])
            else:
                yield _true(trace, entry, base_s + entry["t"], (agent, parent, status))

    return walk(trace["requests"], 0.0, "main", None, None)


def _true(trace: dict[str, Any], entry: dict[str, Any], t_s: float, who: tuple[str, Any, Any]) -> TrueRequest:
    scope = trace["id"] if trace["hash_id_scope"] == "local" else None
    prefixes = {trace["block_size"] * (n + 1): (scope, number) for n, number in enumerate(entry["hash_ids"])}
    at_s = datetime.fromisoformat(entry["timestamp"]).timestamp() if "timestamp" in entry else t_s
    return TrueRequest(
        trace["id"], *who, at_s, t_s, entry.get("api_time"), entry["model"], entry["in"], entry["out"], prefixes,
    )  # fmt: skip


def assert_same_blocks(found: Iterable[list[int]], keys: Iterable[list[Hashable]]) -> None:
    """Equal numbers stand for equal things and the other way round; what is not known has a number of its own."""
    key_of: dict[int, Hashable] = {}
    number_of: dict[Hashable, int] = {}
    for numbers, expected in zip(found, keys, strict=True):
        assert len(numbers) == len(expected)
        for number, key in zip(numbers, expected, strict=True):
            if key is None:
                assert number not in key_of
                key_of[number] = object()
            else:
                assert key_of.setdefault(number, key) == key
                assert number_of.setdefault(key, number) == number
    assert set(key_of) == set(range(1, len(key_of) + 1)), "numbers are dense"


def by_model(requests: Iterable[TrueRequest], block_size: int, *, with_tail: bool = True) -> list[list[Hashable]]:
    return [
        [None if key is None else (r.model, key) for key in r.keys(block_size, with_tail=with_tail)] for r in requests
    ]


def session(request: TrueRequest) -> str:
    return request.trace if request.agent == "main" else f"{request.trace}/{request.agent}"


def in_time(requests: Iterable[TrueRequest]) -> list[TrueRequest]:
    return sorted(requests, key=lambda r: r.at_s)


def assert_mooncake(path: Path, requests: list[TrueRequest], block_size: int) -> None:
    rows = [MOONCAKE_DECODER.decode(line) for line in path.read_bytes().splitlines()]
    ordered = in_time(requests)
    start_s = ordered[0].at_s
    assert [(r.timestamp, r.session_id, r.input_length, r.output_length) for r in rows] == [
        (round((t.at_s - start_s) * 1000), session(t), t.n_in, t.n_out) for t in ordered
    ]
    begun = set()
    for row in rows:
        assert (row.delay is None) == (row.session_id not in begun)
        begun.add(row.session_id)
    assert_same_blocks([row.hash_ids for row in rows], by_model(ordered, block_size))
    _assert_one_length([(row.hash_ids, row.input_length) for row in rows], block_size)


def _assert_one_length(rows: list[tuple[list[int], int]], block_size: int) -> None:
    """AIPerf makes up a block's tokens once, so a number can't stand for blocks of two lengths."""
    lengths: dict[int, int] = {}
    for numbers, n_tokens in rows:
        for place, number in enumerate(numbers):
            length = min(block_size, n_tokens - place * block_size)
            assert 0 < length == lengths.setdefault(number, length)


def assert_bailian(path: Path, requests: list[TrueRequest], block_size: int) -> None:
    rows = [BAILIAN_DECODER.decode(line) for line in path.read_bytes().splitlines()]
    ordered = in_time(requests)
    start_s = ordered[0].at_s
    latest: dict[str, tuple[int, int]] = {}
    for number, (row, true) in enumerate(zip(rows, ordered, strict=True)):
        parent, turn = latest.get(session(true), (-1, 0))
        assert (row.chat_id, row.parent_chat_id, row.turn, row.type) == (number, parent, turn + 1, "text")
        assert (row.timestamp, row.input_length) == (round(true.at_s - start_s, 3), true.n_in)
        assert row.output_length == true.n_out
        latest[session(true)] = (number, turn + 1)
    assert_same_blocks([row.hash_ids for row in rows], by_model(ordered, block_size))


def assert_oracle_general(path: Path, requests: list[TrueRequest], block_size: int) -> None:
    records = read_records(path)
    ordered = in_time(requests)
    start_s = ordered[0].at_s
    keys = by_model(ordered, block_size, with_tail=False)
    times = [int(round(t.at_s - start_s, 3)) for t, own in zip(ordered, keys, strict=True) for _ in own]
    assert records["time"].tolist() == times
    assert set(records["size"].tolist()) <= {block_size}
    numbers, flat = records["id"].tolist(), [key for own in keys for key in own]
    assert_same_blocks([numbers], [flat])
    met: dict[int, int] = {}
    for vtime in range(len(numbers), 0, -1):
        assert records["next_vtime"][vtime - 1] == met.get(numbers[vtime - 1], -1)
        met[numbers[vtime - 1]] = vtime


def assert_parquet(path: Path, requests: list[TrueRequest], block_size: int) -> None:
    frame = pl.read_parquet(path)
    columns = ("trace_id", "agent_id", "parent_agent_id", "agent_status", "t_s", "api_time_s", "model", "input_tokens",
               "output_tokens")  # fmt: skip
    assert frame.select(columns).rows() == [
        (t.trace, t.agent, t.parent, t.status, t.t_s, t.api_time_s, t.model, t.n_in, t.n_out) for t in requests
    ]
    assert frame["requested_at_utc"].null_count() == frame.height
    numbers = [
        full + ([] if tail is None else [tail]) for full, tail in frame.select("hash_ids", "tail_id").iter_rows()
    ]
    assert_same_blocks(numbers, [t.keys(block_size) for t in requests])


def assert_agentic(path: Path, requests: list[TrueRequest], block_size: int) -> None:
    first, *lines = path.read_bytes().splitlines()
    header, rows = HEADER_DECODER.decode(first), [AGENTIC_DECODER.decode(line) for line in lines]
    assert (header.schema, header.version, header.block_size) == ("dynamo.agentic_mooncake", 2, block_size)
    assert [(r.play_id, r.session_id.partition("~")[0], r.model, r.input_length, r.output_length) for r in rows] == [
        (t.trace, session(t), t.model, t.n_in, max(1, t.n_out)) for t in requests
    ]
    for play in dict.fromkeys(t.trace for t in requests):
        own = [(row, t) for row, t in zip(rows, requests, strict=True) if t.trace == play]
        _assert_play(own)
    keys = [
        [key and (t.trace, key) for key in own] for t, own in zip(requests, by_model(requests, block_size), strict=True)
    ]
    assert_same_blocks([row.hash_ids for row in rows], keys)


def _assert_play(own):
    known = {row.request_id: true for row, true in own}
    start_s = own[0][1].t_s
    seen = set()
    for row, true in own:
        assert row.not_before_ms == round((true.t_s - start_s) * 1000, 3)
        recorded = None if true.api_time_s is None else round(true.api_time_s * 1000, 3)
        assert row.recorded_api_time_ms == recorded
        assert {d.request_id for d in row.dependencies} <= seen
        assert bool(row.dependencies) == bool(seen), "one root"
        for d in row.dependencies:
            other = known[d.request_id]
            moment_s = other.t_s + (other.api_time_s or 0.0 if d.trigger == "completion" else 0.0)
            assert moment_s + d.delay_ms / 1000 <= true.t_s + 2e-6
            if d.relation == "sequence":
                assert other.agent == true.agent
            if d.relation == "spawn" and other.agent not in (true.agent, true.parent):
                assert d.trigger == "dispatch", "an agent that nobody known started hangs on the first request"
            if d.relation == "join":
                assert (other.parent, other.status) == (true.agent, "completed")
        seen.add(row.request_id)


ASSERTIONS = {
    "mooncake": assert_mooncake,
    "bailian": assert_bailian,
    "oracle-general": assert_oracle_general,
    "parquet": assert_parquet,
    "agentic-mooncake": assert_agentic,
}
