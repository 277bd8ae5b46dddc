"""`kv-pipeline export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kv_pipeline import progress
from kv_pipeline.cli.display import console, print_file_notices, print_json, showing_progress
from kv_pipeline.cli.tables import open_existing
from kv_pipeline.errors import Skip, UsageError
from kv_pipeline.export.exporter import ExportResult, export_conversations
from kv_pipeline.export.files import target
from kv_pipeline.export.options import OWN_BLOCK_SIZES, ExportOptions, Format
from kv_pipeline.export.sources import Conversations
from kv_pipeline.export.store_conversations import StoreConversations
from kv_pipeline.export.trace_conversations import TraceConversations
from kv_pipeline.remote.url import Location
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline.sources.trace_json.reader import trace_files


@dataclass(frozen=True, slots=True)
class ExportInput:
    """What to export.

    Attributes:
        store: Folder or URL of the store.
        from_traces: Trace files and folders of them, instead of the store.
        nested_times: What `t` inside their sub-agents counts from.
        conversation_ids: Only these; all if None.
    """

    store: Location
    from_traces: list[Path] | None
    nested_times: NestedTimes
    conversation_ids: list[str] | None

    def conversations(self, out: Path, options: ExportOptions) -> Conversations:
        """The conversations that are asked for; `out` is where they will be written.

        Raises:
            UsageError: There is no such store, file or conversation, or what is read would be written over.
        """
        if self.from_traces:
            files = trace_files(self.from_traces)
            _spare(files, out, options)
            return TraceConversations(files, options, self.nested_times, self.conversation_ids)
        if self.nested_times is not NestedTimes.AUTO:
            raise UsageError("--nested-times is about trace files. Use it with --from-traces.")
        store = open_existing(self.store)
        block_size = options.block_size or OWN_BLOCK_SIZES.get(options.format) or store.settings.block_size
        return StoreConversations(store, block_size, self.conversation_ids)


def _spare(files: list[Path], out: Path, options: ExportOptions) -> None:
    """Input is never written over, nor is anything written beside it under names like its own."""
    if options.format is Format.TRACE:
        is_in_the_way = out.resolve() in {path.resolve().parent for path in files}
    else:
        is_in_the_way = target(out, options).resolve() in {path.resolve() for path in files}
    if is_in_the_way:
        raise UsageError(f"{out} is where the input is. Choose another --out.")


def export_command(source: ExportInput, out: Path, options: ExportOptions, *, as_json: bool) -> bool:
    """Write what is asked for and say what was written.

    Returns:
        Whether some input was left out although it was asked for.
    """
    options.check()
    conversations = source.conversations(out, options)
    with showing_progress():
        advance = progress.counter("export", len(conversations.names))
        result = export_conversations(conversations, out, options, advance)
    if as_json:
        print_json(_document(result, options))
    else:
        _print(result, out, options)
    return any(notice.is_left_out for notice in result.notices)


def _print(result: ExportResult, out: Path, options: ExportOptions) -> None:
    lines = console()
    where = out if options.format is Format.TRACE else result.files[0]
    lines.print(f"{len(result.traces)} traces with {result.n_requests:,} requests in {where}.")
    for reason, n_traces in result.left_out.items():
        lines.print(f"Left out: {n_traces} with {reason}.")
    for reason, number in result.not_held.items():
        lines.print(f"Not held by {options.format}: {number:,} {reason}.")
    print_file_notices(result.notices)


def _document(result: ExportResult, options: ExportOptions) -> dict[str, Any]:
    return {
        "format": options.format.value,
        "files": [str(path) for path in result.files],
        "n_traces": len(result.traces),
        "n_requests": result.n_requests,
        "left_out": result.left_out,
        "not_held": result.not_held,
        "traces": [trace._asdict() for trace in result.traces],
        "notices": [_notice(notice) for notice in result.notices],
    }


def _notice(notice: Skip) -> dict[str, Any]:
    return {name: getattr(notice, name) for name in ("source", "reason", "found", "remedy", "is_left_out")}
