"""All definitions in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dagster as dg

from kv_pipeline.defs import assets
from kv_pipeline.defs.resources import PipelineResource

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


def build_defs(*, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The pipeline's definitions.

    Args:
        resource_overrides: Resources to use instead of those from the environment, by name.
    """
    return dg.Definitions(
        assets=dg.load_assets_from_modules([assets]),
        jobs=[ingest_databases, index_conversations, make_conversations],
        resources={"pipeline": PipelineResource(), **(resource_overrides or {})},
        executor=dg.in_process_executor,
    )
