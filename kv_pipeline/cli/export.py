"""`kv-pipeline export`."""

from __future__ import annotations

from pathlib import Path

from kv_pipeline import progress
from kv_pipeline.cli.display import console, print_json, showing_progress
from kv_pipeline.cli.tables import open_existing
from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import ExportOptions
from kv_pipeline.schemas.blocks import TRACES


def export_command(
    store_path: Path, out: Path, options: ExportOptions, conversation_ids: list[str] | None, *, as_json: bool
) -> None:
    """Write trace files and say what was written."""
    store = open_existing(store_path)
    n_conversations = len(conversation_ids or store.partitions(TRACES.name))
    with showing_progress():
        result = export_traces(store, out, options, conversation_ids, progress.counter("export", n_conversations))
    if as_json:
        files = [str(path) for path in result.files]
        print_json({"files": files, "n_requests": result.n_requests, "left_out": result.left_out})
        return
    console().print(f"{len(result.files)} traces with {result.n_requests:,} requests in {out}.")
    for reason, n_traces in result.left_out.items():
        console().print(f"Left out: {n_traces} with {reason}.")
