"""The data dictionary in `docs/`, made from the models.

`python -m kv_pipeline.schemas.dictionary > docs/data-dictionary.md` writes it anew.
"""

from __future__ import annotations

import sys
from typing import Final

import pandera.polars as pa

from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, TRACES, VALIDATION_REPORT, VALIDATION_SUMMARY
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.explanations import CACHE_REPORT, CONTENT_BLOCKS, WHAT_IF
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS, SEGMENTS, SKIPPED_INPUT
from kv_pipeline.schemas.transcripts import TRANSCRIPT_AGENTS, TRANSCRIPT_ANSWERS, TRANSCRIPT_COMPACTIONS

TABLES: Final = {
    "raw_requests": (RAW_REQUESTS, SEGMENTS, SKIPPED_INPUT),
    "message_index": (MESSAGE_INDEX,),
    "conversation_index": (
        CONVERSATIONS,
        CONVERSATION_REQUESTS,
        AGENTS,
        UNINDEXED_REQUESTS,
        TRANSCRIPT_ANSWERS,
        TRANSCRIPT_AGENTS,
        TRANSCRIPT_COMPACTIONS,
    ),
    "tokenized_blocks": (TOKENIZED_BLOCKS,),
    "traces": (TRACES,),
    "validation_report": (VALIDATION_REPORT, VALIDATION_SUMMARY, CONTENT_BLOCKS, CACHE_REPORT, WHAT_IF),
}
"""Asset to the tables it writes."""

_INTRODUCTION: Final = """# Data dictionary

Made from the Pandera models (`python -m kv_pipeline.schemas.dictionary`); do not edit. Files are
`<store>/<table>/<partition>.parquet`. Every file's Parquet metadata has a key `kv_pipeline` with the store's settings:
block size, hash scheme, tokenizer and vocabulary digest, normalisation.
"""


def dictionary() -> str:
    """The document, in Markdown."""
    parts = [_INTRODUCTION]
    for asset, models in TABLES.items():
        parts.append(f"## Asset {asset}\n")
        parts += [_table(model) for model in models]
    return "\n".join(parts)


def _table(model: pa.DataFrameSchema) -> str:
    key = ", ".join(f"`{name}`" for name in model.unique or ()) or "none"
    return f"### {model.name}\n\n{model.description} Unique key: {key}.\n\n{columns_table(model)}\n"


def columns_table(model: pa.DataFrameSchema) -> str:
    """The columns of a table, as a table in Markdown."""
    lines = ["| column | type | null | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {column.dtype} | {'yes' if column.nullable else 'no'} | {column.description} |"
        for name, column in model.columns.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(dictionary())
