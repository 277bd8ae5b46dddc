"""Partitions. Keys are registered by whoever finds them; a run handles a range of many.

A range is what stands between two keys in the list of partitions when the run gets to it, and keys of what changed are
moved to the list's end. So keys are moved only while holding the store's writer lock alone, and ranges are read only
while holding or sharing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import dagster as dg

from kv_pipeline.defs.event_log import move_dynamic_partitions_to_end
from kv_pipeline.environment import whole_number
from kv_pipeline.errors import StoreError

DATABASES: Final = dg.DynamicPartitionsDefinition(name="databases")
CONVERSATIONS: Final = dg.DynamicPartitionsDefinition(name="conversations")
BATCH_VARIABLE: Final = "KV_PIPELINE_BATCH_SIZE"
RANGE_START: Final = "dagster/asset_partition_range_start"
RANGE_END: Final = "dagster/asset_partition_range_end"
BATCH_TAG: Final = "kv_pipeline/batch"
"""Tag of runs that are handed out to workers: digest of the store's salt, which says what store they are for."""


def backfill_policy() -> dg.BackfillPolicy:
    """One run for all partitions of a backfill, or one for so many as the environment says, to spread over workers."""
    size = whole_number(BATCH_VARIABLE, "partitions")
    return dg.BackfillPolicy.single_run() if size is None else dg.BackfillPolicy.multi_run(size)


def claim_range(
    instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, keys: Sequence[str]
) -> dict[str, str]:
    """Put keys at the end of the list of partitions; returns the tags of a run over exactly them.

    Args:
        instance: The instance.
        partitions: The list.
        keys: At least one key; those that are new are added.
    """
    move_dynamic_partitions_to_end(instance, str(partitions.name), keys)
    return {RANGE_START: keys[0], RANGE_END: keys[-1]}


def keys_of_run(context: dg.AssetExecutionContext) -> Sequence[str]:
    """Partition keys of an asset's run.

    Raises:
        StoreError: The range's first key was moved behind its last one since the run was launched.
    """
    keys: Sequence[str] = context.partition_keys
    if not keys:
        raise StoreError("The run's partitions were reordered by another run before it began. Launch it again.")
    return keys
