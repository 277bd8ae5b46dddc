"""One writer a format: takes an export's traces or requests, returns the files it wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import polars as pl
import pyarrow.parquet as pq

from kv_pipeline.core.hashing import DEFAULT_BLOCK_SIZE
from kv_pipeline.errors import StoreError
from kv_pipeline.export.agentic_mooncake import empty_digest, header_line, play_lines
from kv_pipeline.export.bailian import BailianEncoder
from kv_pipeline.export.files import make_folder, replacing, target, write_json
from kv_pipeline.export.mooncake import MooncakeEncoder
from kv_pipeline.export.numbering import Numbering
from kv_pipeline.export.options import ExportOptions, Format, Profile
from kv_pipeline.export.oracle_general import OracleGeneralEncoder, fill_next_uses
from kv_pipeline.export.placed import PlacedRequest, PlacedTrace
from kv_pipeline.export.request_table import request_rows
from kv_pipeline.export.sources import Conversations
from kv_pipeline.export.trace_json import TraceRequest, agent_tree, trace_json
from kv_pipeline.names import safe_name
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.exports import EXPORTED_REQUESTS
from kv_pipeline.store import check


class Writing(Protocol):
    """An export under way."""

    conversations: Conversations
    out: Path
    options: ExportOptions

    def traces(self) -> Iterator[PlacedTrace]:
        """All traces, one after the other."""
        ...

    def requests(self) -> Iterator[PlacedRequest]:
        """The requests of all traces by time."""
        ...


def write_traces(export: Writing) -> list[Path]:
    """Trace JSON, a file a trace; beside strict ones a file with what we know of them."""
    numbering = Numbering(export.options.scope, is_restarting=True)
    make_folder(export.out)
    return [_write_trace(export, trace, numbering) for trace in export.traces()]


def _write_trace(export: Writing, trace: PlacedTrace, numbering: Numbering) -> Path:
    piece, options = trace.piece, export.options
    numbering.start()
    requests = [
        TraceRequest(row, numbering.blocks(trace.number, piece, row["model"], path))
        for row, path in zip(piece.requests.to_dicts(), piece.paths(), strict=True)
    ]
    root = agent_tree(requests, piece.agents)
    if root is None:
        raise StoreError(f"Conversation {piece.conversation_id} has no requests.")
    analysis = export.conversations.analysis(piece, options)
    path = export.out / f"{safe_name(trace.trace_id)}.json"
    write_json(path, trace_json(trace.trace_id, root, piece.block_size, options, analysis))
    if options.profile is Profile.STRICT and analysis is not None:
        write_json(export.out / "analysis" / path.name, {"id": trace.trace_id, **analysis})
    return path


def write_mooncake(export: Writing) -> list[Path]:
    """Mooncake JSONL."""
    numbering = Numbering(export.options.scope, is_by_model=True)
    return _write_requests(export, MooncakeEncoder(numbering, with_sessions=export.options.with_sessions))


def write_bailian(export: Writing) -> list[Path]:
    """JSONL in the style of Bailian."""
    return _write_requests(export, BailianEncoder(Numbering(export.options.scope, is_by_model=True)))


def write_oracle_general(export: Writing) -> list[Path]:
    """Binary records of libCacheSim; when each block is used next is filled in at the end."""
    numbering = Numbering(export.options.scope, is_by_model=True)
    return _write_requests(
        export,
        OracleGeneralEncoder(numbering),
        lambda path: fill_next_uses(path, numbering.n_numbers),
    )


def _write_requests(
    export: Writing, encode: Callable[[PlacedRequest], bytes], finish: Callable[[Path], None] | None = None
) -> list[Path]:
    path = target(export.out, export.options)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            for request in export.requests():
                file.write(encode(request))
        if finish:
            finish(temporary)
    return [path]


def write_agentic_mooncake(export: Writing) -> list[Path]:
    """Agentic Mooncake v2, play after play; the header's digest is filled in at the end.

    No number is in two plays, or used by two models: Dynamo 1.6 replays all plays and models of a file on one cache.
    """
    path, numbering = target(export.out, export.options), Numbering(export.options.scope, is_by_model=True)
    digest, block_size = hashlib.sha256(), export.options.block_size or DEFAULT_BLOCK_SIZE
    with replacing(path) as temporary, temporary.open("wb") as file:
        for trace in export.traces():
            if trace.number == 0:
                block_size = trace.piece.block_size
                file.write(header_line(block_size, empty_digest()))
            numbering.start()
            for line in play_lines(trace, numbering):
                digest.update(line)
                file.write(line)
        file.seek(0)
        file.write(header_line(block_size, digest.hexdigest()))
    return [path]


def write_parquet(export: Writing) -> list[Path]:
    """A row group a trace."""
    path, numbering = target(export.out, export.options), Numbering(export.options.scope)
    schema = pl.DataFrame(schema=polars_schema(EXPORTED_REQUESTS)).to_arrow().schema
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for trace in export.traces():
            rows = check(EXPORTED_REQUESTS, request_rows(trace, numbering, export.options))
            writer.write_table(rows.to_arrow().cast(schema))
    return [path]


WRITERS: Final[dict[Format, Callable[[Writing], Sequence[Path]]]] = {
    Format.TRACE: write_traces,
    Format.MOONCAKE: write_mooncake,
    Format.AGENTIC_MOONCAKE: write_agentic_mooncake,
    Format.BAILIAN: write_bailian,
    Format.ORACLE_GENERAL: write_oracle_general,
    Format.PARQUET: write_parquet,
}
