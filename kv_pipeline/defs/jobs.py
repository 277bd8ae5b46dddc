"""The three jobs that bring a store up to date, in this order."""

from __future__ import annotations

from typing import Final

import dagster as dg

DATABASE_ASSETS: Final = ("raw_requests", "message_index")
CONVERSATION_ASSETS: Final = ("tokenized_blocks", "traces", "validation_report")

ingest_databases = dg.define_asset_job(
    "ingest_databases",
    selection=dg.AssetSelection.assets(*DATABASE_ASSETS),
    description="Read databases: new and changed ones as a range of partitions.",
)
index_conversations = dg.define_asset_job(
    "index_conversations",
    selection=dg.AssetSelection.assets("conversation_index"),
    description="Join transcripts and databases, and find out which conversations changed.",
)
make_conversations = dg.define_asset_job(
    "make_conversations",
    selection=dg.AssetSelection.assets(*CONVERSATION_ASSETS),
    description="Blocks, traces and validation of a range of conversations.",
)
JOBS: Final = (ingest_databases, index_conversations, make_conversations)
