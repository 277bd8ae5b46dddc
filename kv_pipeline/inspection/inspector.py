"""Looks into files: which format, what is in them, and who can read them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np
import polars as pl

from kv_pipeline.errors import StoreError, UsageError
from kv_pipeline.export.options import Format
from kv_pipeline.export.oracle_general import NEVER, RECORD, Records, read_records
from kv_pipeline.inspection.consumers import CONSUMERS, Consumer
from kv_pipeline.inspection.contents import Contents, Counter
from kv_pipeline.inspection.problems import Problem, on_line
from kv_pipeline.inspection.row_rules import ROW_RULES, AgenticRules, BailianRules, BlockSize, MooncakeRules
from kv_pipeline.inspection.trace_rules import entries, trace_problems
from kv_pipeline.schemas.exports import EXPORTED_REQUESTS
from kv_pipeline.store import judge

_ENDINGS: Final = ("*.json", "*.jsonl", "*.parquet", "*.oracleGeneral")
_PARQUET: Final = b"PAR1"
_SECONDS: Final = {Format.MOONCAKE: 1e-3, Format.AGENTIC_MOONCAKE: 1e-3, Format.BAILIAN: 1.0}
_TIME_KEYS: Final = {
    Format.MOONCAKE: "timestamp", Format.AGENTIC_MOONCAKE: "not_before_ms", Format.BAILIAN: "timestamp",
}  # fmt: skip
_Rules = MooncakeRules | BailianRules | AgenticRules


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a file.

    Attributes:
        path: The file.
        format: What it is; None if that can't be told.
        contents: What is in it.
        problems: Reader to what it refuses; readers of other formats are not in it.
    """

    path: Path
    format: Format | None
    contents: Contents
    problems: dict[Consumer, list[Problem]]

    def is_valid_for(self, consumer: Consumer | None) -> bool:
        """Whether a reader takes the file; whether any does if none is named."""
        if consumer is not None:
            return not self.problems.get(consumer, [None])
        return any(not problems for problems in self.problems.values())


def files_to_inspect(paths: Sequence[Path]) -> list[Path]:
    """Files themselves, and in folders those whose names end like trace files.

    Raises:
        UsageError: There is no such path, or no such file in a folder.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UsageError(f"There is no file or folder {missing[0]}.")
    found = [file for path in paths for file in (_in_folder(path) if path.is_dir() else [path])]
    if not found:
        raise UsageError(f"There is no {', '.join(_ENDINGS)} in {', '.join(map(str, paths))}.")
    return list(dict.fromkeys(found))


def _in_folder(folder: Path) -> list[Path]:
    return sorted(path for ending in _ENDINGS for path in folder.glob(ending))


def inspect_file(path: Path) -> Inspection:
    """Look into one file. Whatever is wrong with it is a problem in the result, not an error."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_PARQUET))
            first_line = next((line for line in itertools.chain([start + file.readline()], file) if line.strip()), b"")
        if start == _PARQUET:
            return _parquet(path)
        if not first_line.lstrip().startswith(b"{"):
            return _binary(path) if start else _unknown(path, "an empty file")
        return _lines(path, _row_format(first_line)) or _trace(path)
    except OSError as error:
        return _unknown(path, error.strerror or "no access")


def _unknown(path: Path, why: str, where: str = "$") -> Inspection:
    everybody = {consumer for consumers in CONSUMERS.values() for consumer in consumers}
    problems = {consumer: [Problem(where, why)] for consumer in Consumer if consumer in everybody}
    return Inspection(path, None, Contents(), problems)


# --- Trace JSON -------------------------------------------------------------------------------------------------------


def _trace(path: Path) -> Inspection:
    try:
        trace = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _unknown(path, f"no JSON: {_plain(error)}")
    problems = {consumer: trace_problems(consumer, trace) for consumer in CONSUMERS[Format.TRACE]}
    return Inspection(path, Format.TRACE, _trace_contents(trace), problems)


def _trace_contents(trace: object) -> Contents:
    counter = Counter()
    counter.contents.n_traces = 1
    for entry in entries(trace):
        if entry.depth == 0:
            counter.time(entry.value.get("t"))
        if entry.is_subagent:
            counter.contents.n_subagents += 1
        else:
            counter.request(entry.value, "in", "out")
    contents = counter.result()
    if isinstance(trace, Mapping):
        size, scope = trace.get("block_size"), trace.get("hash_id_scope")
        contents.block_size = size if isinstance(size, int) else None
        contents.hash_id_scope = scope if scope in ("local", "global") else None
    return contents


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _lines(path: Path, kind: Format | None) -> Inspection | None:
    """A file of rows, if its first line is one."""
    if kind is None:
        return None
    rules = {consumer: ROW_RULES[kind](consumer) for consumer in CONSUMERS[kind]}
    problems: dict[Consumer, list[Problem]] = {consumer: [] for consumer in rules}
    counter, sizes, traces = Counter(), BlockSize(), set[str]()
    with path.open("rb") as file:
        for number, row in _rows(file):
            for consumer, rule in rules.items():
                found = [Problem("$", "no JSON")] if row is None else rule.add(row)
                problems[consumer] += on_line(number, found)
            if isinstance(row, Mapping):
                _count_row(kind, row, counter, sizes, traces)
    contents = counter.result()
    contents.n_traces = len(traces)
    contents.block_size = contents.block_size or sizes.likely
    return Inspection(path, kind, contents, problems)


def _row_format(line: bytes) -> Format | None:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(row, Mapping) or "requests" in row:
        return None
    if "schema" in row:
        return Format.AGENTIC_MOONCAKE
    if "chat_id" in row:
        return Format.BAILIAN
    is_mooncake = {"hash_ids", "input_length", "input_tokens", "text_input", "messages", "payload"} & row.keys()
    return Format.MOONCAKE if is_mooncake else None


def _rows(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Line number and row; None for a line that is no JSON."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield number, None


def _count_row(kind: Format, row: Mapping[str, Any], counter: Counter, sizes: BlockSize, traces: set[str]) -> None:
    if kind is Format.AGENTIC_MOONCAKE and "schema" in row:
        size, scope = row.get("block_size"), row.get("hash_id_scope")
        counter.contents.block_size = size if isinstance(size, int) else None
        counter.contents.hash_id_scope = scope if isinstance(scope, str) else None
        return
    play = row.get("play_id")
    counter.request(row, "input_length", "output_length", play if isinstance(play, str) else None)
    time = row.get(_TIME_KEYS[kind])
    counter.time(time * _SECONDS[kind] if isinstance(time, int | float) else None)
    tokens, ids = row.get("input_length"), row.get("hash_ids")
    if isinstance(tokens, int) and isinstance(ids, list) and ids and tokens > 0:
        sizes.add(len(ids), tokens)
    root = play if kind is Format.AGENTIC_MOONCAKE else row.get("session_id")
    if kind is Format.BAILIAN:
        root = str(row.get("chat_id")) if row.get("parent_chat_id", -1) == -1 else None
    if isinstance(root, str):
        traces.add(root)


# --- Tables -----------------------------------------------------------------------------------------------------------


def _binary(path: Path) -> Inspection:
    if path.stat().st_size % RECORD.itemsize:
        return _unknown(path, f"neither JSON of a trace nor JSON lines, Parquet, or records of {RECORD.itemsize} bytes")
    records = read_records(path)
    sizes = np.unique(records["size"])
    contents = Contents(
        block_references=len(records),
        distinct_blocks=len(np.unique(records["id"])),
        block_size=int(sizes[0]) if len(sizes) == 1 else None,
        duration_s=float(records["time"].max() - records["time"].min()),
    )
    problems = {Consumer.LIBCACHESIM: list(_record_problems(records))}
    return Inspection(path, Format.ORACLE_GENERAL, contents, problems)


def _record_problems(records: Records) -> Iterator[Problem]:
    """The first record of each kind that the simulator would misread."""
    ids, uses = np.array(records["id"]), np.array(records["next_vtime"])
    numbers = np.arange(1, len(ids) + 1)
    is_known = (uses > numbers) & (uses <= len(ids))
    leads_astray = (uses != NEVER) & ~(is_known & (ids[np.where(is_known, uses, 1) - 1] == ids))
    wrong = {
        "size 0, which is skipped": np.array(records["size"]) == 0,
        "a time before that of the record before": np.append(False, np.diff(records["time"].astype(np.int64)) < 0),
        "a next use that is not one of the same object": leads_astray,
    }
    for why, where in wrong.items():
        if where.any():
            yield Problem(f"record {int(np.flatnonzero(where)[0]) + 1}", f"{why} ({int(where.sum())} times)")


def _parquet(path: Path) -> Inspection:
    try:
        frame = pl.read_parquet(path, hive_partitioning=False, glob=False)
        judge(EXPORTED_REQUESTS, frame)
    except pl.exceptions.PolarsError:
        return _unknown(path, "a damaged Parquet file")
    except StoreError as error:
        problems = {Consumer.KV_PIPELINE: [Problem("$", str(error))]}
        return Inspection(path, Format.PARQUET, Contents(), problems)
    sizes, ids = frame["block_size"].unique(), frame["hash_ids"].explode().drop_nulls()
    agents = frame.filter(pl.col("agent_id") != "main").select("trace_id", "agent_id").n_unique()
    span = frame.select(pl.col("t_s").max() - pl.col("t_s").min()).item()
    contents = Contents(
        n_traces=frame["trace_id"].n_unique(),
        n_requests=frame.height,
        n_subagents=agents,
        prompt_tokens=int(frame["input_tokens"].cast(pl.Int64).sum()),
        output_tokens=int(frame["output_tokens"].sum()),
        block_references=len(ids),
        distinct_blocks=ids.n_unique(),
        block_size=int(sizes[0]) if len(sizes) == 1 else None,
        duration_s=span,
        models=frame["model"].unique(maintain_order=True).to_list(),
    )
    return Inspection(path, Format.PARQUET, contents, {Consumer.KV_PIPELINE: []})


def _plain(error: Exception) -> str:
    """Where decoding stopped: without expected types, messages repeat nothing of the file."""
    return str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__
