"""`kv-pipeline inspect`: what is in trace files, and who can read them. Nothing is written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from kv_pipeline import progress
from kv_pipeline.cli.display import console, print_json, showing_progress
from kv_pipeline.inspection.consumers import Consumer
from kv_pipeline.inspection.inspector import Inspection, files_to_inspect, inspect_file

JSON_FORMAT: Final = "kv_pipeline.inspection/1"


def inspect_command(paths: list[Path], consumer: Consumer | None, limit: int, *, as_json: bool) -> bool:
    """Look into files and print what was found.

    Returns:
        Whether all of them are valid for the consumer; for any if none is named.
    """
    files = files_to_inspect(paths)
    found = []
    with showing_progress():
        advance = progress.counter("files", len(files))
        for path in files:
            found.append(inspect_file(path))
            advance(1)
    if as_json:
        documents = [_document(inspection, consumer, limit) for inspection in found]
        print_json({"format": JSON_FORMAT, "for": consumer, "files": documents})
    else:
        _print(found, consumer, limit)
    return all(inspection.is_valid_for(consumer) for inspection in found)


def _document(found: Inspection, consumer: Consumer | None, limit: int) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "format": found.format,
        "is_valid": found.is_valid_for(consumer),
        "contents": asdict(found.contents),
        "consumers": {
            reader.value: {
                "is_valid": not problems,
                "n_problems": len(problems),
                "problems": [problem._asdict() for problem in problems[:limit]],
            }
            for reader, problems in found.problems.items()
        },
    }


def _print(found: list[Inspection], consumer: Consumer | None, limit: int) -> None:
    out = console()
    for inspection in found:
        out.print(f"{inspection.path}: {inspection.format or 'unknown format'}", style="bold", markup=False)
        if inspection.format is None:
            out.print("  nobody reads it: " + next(iter(inspection.problems.values()))[0].why, markup=False)
            continue
        out.print(_told(inspection), markup=False)
        for reader, problems in inspection.problems.items():
            if consumer in (None, reader):
                out.print(f"  {reader}: " + (f"invalid, {len(problems)} problems" if problems else "valid"))
                for path, why in problems[:limit]:
                    out.print(f"    {path}: {why}", markup=False)
        if consumer is not None and consumer not in inspection.problems:
            out.print(f"  {consumer}: does not read this format")
    n_valid = sum(inspection.is_valid_for(consumer) for inspection in found)
    out.print(f"{n_valid} of {len(found)} files are valid for {consumer or 'some reader'}.")


def _told(inspection: Inspection) -> str:
    contents = inspection.contents
    parts = [
        f"{contents.n_traces:,} traces, {contents.n_requests:,} requests, {contents.n_subagents:,} sub-agents",
        f"{contents.prompt_tokens:,} prompt and {contents.output_tokens:,} output tokens",
        f"{contents.block_references:,} blocks, {contents.distinct_blocks:,} distinct",
        f"block size {contents.block_size or 'not told'}",
    ]
    if contents.hash_id_scope:
        parts.append(f"{contents.hash_id_scope} ids")
    if contents.duration_s is not None:
        parts.append(f"{contents.duration_s:,.0f} s")
    if contents.models:
        parts.append(", ".join(contents.models))
    return "  " + "; ".join(parts)
