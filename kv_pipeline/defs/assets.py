"""The six assets. Each reads its partitions' keys, calls one step, and reports counts: never content, never paths."""

# No `from __future__ import annotations` here: Dagster reads the context annotation as a type.

from collections import Counter

import dagster as dg
import pandera.polars as pa
import polars as pl

from kv_pipeline import progress
from kv_pipeline.defs import checks
from kv_pipeline.defs.event_log import delete_dynamic_partitions, move_dynamic_partitions_to_end
from kv_pipeline.defs.partitions import CONVERSATIONS, DATABASES, ONE_RUN
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.errors import InputError
from kv_pipeline.schemas import blocks, requests
from kv_pipeline.schemas import conversations as conversation_tables
from kv_pipeline.steps import conversations as steps
from kv_pipeline.steps import plan, versions
from kv_pipeline.steps.databases import index_database, ingest_database
from kv_pipeline.steps.fleet import roll_up
from kv_pipeline.steps.index import INDEX_MODELS, conversations, index_user
from kv_pipeline.store import Store


def _schema(model: pa.DataFrameSchema) -> dict[str, dg.TableSchema]:
    columns = [
        dg.TableColumn(
            name=name,
            type=str(column.dtype),
            description=column.description,
            constraints=dg.TableColumnConstraints(nullable=column.nullable, other=[str(c) for c in column.checks]),
        )
        for name, column in model.columns.items()
    ]
    return {"dagster/column_schema": dg.TableSchema(columns=columns)}


@dg.asset(
    partitions_def=DATABASES,
    backfill_policy=ONE_RUN,
    group_name="databases",
    kinds={"sqlite", "polars", "parquet"},
    code_version=versions.RAW_REQUESTS_VERSION,
    metadata=_schema(requests.RAW_REQUESTS),
    check_specs=[
        checks.schema_spec("raw_requests"),
        checks.quality_spec("raw_requests", "recorded_once", "No request stands in two databases."),
    ],
)
def raw_requests(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """One row per API request of a proxy database; content held once, as segments."""
    store, landing, keys = pipeline.open_store(), pipeline.landing(), context.partition_keys
    advance = progress.counter("raw_requests", len(keys))
    reasons: dict[str, int] = {}
    with store.writing():
        for key in keys:
            if key not in landing.databases:
                remedy = "Put it back to read it again; what was read from it earlier is still in the store."
                raise InputError("missing_database", key, "it is not in the landing folder", remedy)
            content = ingest_database(store, landing.databases[key])
            for skip in content.skips:
                reasons[skip.reason] = reasons.get(skip.reason, 0) + 1
            context.log.info(f"{key}: {content.requests.height} requests, {len(content.skips)} notices")
            advance(1)
    frame = store.read(requests.RAW_REQUESTS, keys)
    return dg.MaterializeResult(
        metadata={"dagster/row_count": frame.height, "partitions": len(keys), "skipped_by_reason": reasons},
        check_results=[
            checks.schema_result(store, [requests.RAW_REQUESTS, requests.SEGMENTS, requests.SKIPPED_INPUT], keys),
            checks.requests_recorded_once(frame),
        ],
    )


@dg.asset(
    deps=[raw_requests],
    partitions_def=DATABASES,
    backfill_policy=ONE_RUN,
    group_name="databases",
    kinds={"polars", "parquet"},
    code_version=versions.RAW_REQUESTS_VERSION,
    metadata=_schema(requests.MESSAGE_INDEX),
    check_specs=[
        checks.schema_spec("message_index"),
        checks.quality_spec("message_index", "message_ids_unique", "A message id names one request."),
    ],
)
def message_index(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Message id to request, and which request is whose replay twin."""
    store, keys = pipeline.open_store(), context.partition_keys
    advance = progress.counter("message_index", len(keys))
    with store.writing():
        for key in keys:
            index_database(store, key)
            advance(1)
    frame = store.read(requests.MESSAGE_INDEX, keys)
    twins = frame.filter(pl.col("twin_role") == "replay_twin").height
    return dg.MaterializeResult(
        metadata={"dagster/row_count": frame.height, "partitions": len(keys), "replay_twins": twins},
        check_results=[
            checks.schema_result(store, [requests.MESSAGE_INDEX], keys),
            checks.messages_unique(frame),
        ],
    )


@dg.asset(
    deps=[message_index],
    group_name="conversations",
    kinds={"polars", "parquet"},
    code_version=versions.CONVERSATION_INDEX_VERSION,
    metadata=_schema(conversation_tables.CONVERSATIONS),
    check_specs=[
        checks.schema_spec("conversation_index"),
        checks.quality_spec("conversation_index", "answers_found", "Transcripts' answers are in the databases."),
    ],
)
def conversation_index(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Requests joined with transcripts: conversation, agent tree and turn; one set of files a user.

    Conversations that changed are moved to the end of the partition list, so one range covers exactly them.
    """
    store, landing = pipeline.open_store(), pipeline.landing()
    with store.writing():
        users = plan.stale_users(store, landing)
        advance = progress.counter("conversation_index", len(users))
        notices = Counter(skip.reason for skip in landing.skips)
        for user in users:
            notices.update(skip.reason for skip in index_user(store, user, plan.transcripts_of(landing, user)).skips)
            advance(1)
        changed = _register_conversations(context.instance, store)
    known = conversations(store)
    indexed = store.partitions(conversation_tables.CONVERSATIONS.name)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": known.height,
            "users_indexed": len(users),
            "n_changed": len(changed),
            "skipped_by_reason": dict(sorted(notices.items())),
            **({"range_start": changed[0], "range_end": changed[-1]} if changed else {}),
        },
        check_results=[checks.schema_result(store, INDEX_MODELS, indexed), checks.answers_found(known)],
    )


def _register_conversations(instance: dg.DagsterInstance, store: Store) -> list[str]:
    name = str(CONVERSATIONS.name)
    obsolete = plan.obsolete_conversations(store)
    plan.remove_conversations(store, obsolete)
    delete_dynamic_partitions(instance, name, obsolete)
    changed = plan.stale_conversations(store)
    if changed:
        move_dynamic_partitions_to_end(instance, name, changed)
    return changed


@dg.asset(
    deps=[conversation_index],
    partitions_def=CONVERSATIONS,
    backfill_policy=ONE_RUN,
    group_name="conversations",
    kinds={"polars", "parquet"},
    code_version=versions.TOKENIZED_BLOCKS_VERSION,
    metadata=_schema(blocks.TOKENIZED_BLOCKS),
    check_specs=[checks.schema_spec("tokenized_blocks")],
)
def tokenized_blocks(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Token counts per section and chained block hashes; only blocks that no earlier request had."""
    store, keys = pipeline.open_store(), context.partition_keys
    with store.writing():
        made = steps.tokenize_conversations(store, keys, progress.counter("tokenized_blocks", len(keys)))
    return dg.MaterializeResult(
        metadata={"dagster/row_count": made.n_rows, "partitions": made.n_partitions},
        check_results=[checks.schema_result(store, [blocks.TOKENIZED_BLOCKS], keys)],
    )


@dg.asset(
    deps=[tokenized_blocks],
    partitions_def=CONVERSATIONS,
    backfill_policy=ONE_RUN,
    group_name="results",
    kinds={"polars", "parquet"},
    code_version=versions.TRACES_VERSION,
    metadata=_schema(blocks.TRACES),
    check_specs=[checks.schema_spec("traces")],
)
def traces(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """One row per request in trace order: timing, sizes, content types. JSON on export."""
    store, keys = pipeline.open_store(), context.partition_keys
    with store.writing():
        made = steps.trace_conversations(store, keys, progress.counter("traces", len(keys)))
    return dg.MaterializeResult(
        metadata={"dagster/row_count": made.n_rows, "partitions": made.n_partitions},
        check_results=[checks.schema_result(store, [blocks.TRACES], keys)],
    )


@dg.asset(
    deps=[traces],
    partitions_def=CONVERSATIONS,
    backfill_policy=ONE_RUN,
    group_name="results",
    kinds={"polars", "parquet"},
    code_version=versions.VALIDATION_VERSION,
    metadata=_schema(blocks.VALIDATION_REPORT),
    check_specs=[
        checks.schema_spec("validation_report"),
        checks.quality_spec("validation_report", "billed_ratio_plausible", "The bill fits the counted tokens."),
        checks.quality_spec("validation_report", "hits_within_input", "No request hits more than it has."),
    ],
)
def validation_report(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Simulated against billed cache reads, per request; then the fleet roll-up over everything in the store."""
    store, keys = pipeline.open_store(), context.partition_keys
    with store.writing():
        made = steps.validate_conversations(store, keys, progress.counter("validation_report", len(keys)))
        summary = roll_up(store)
    report = store.read(blocks.VALIDATION_REPORT, keys)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": made.n_rows,
            "partitions": made.n_partitions,
            "fleet_conversations": summary["conversation_id"].n_unique(),
        },
        check_results=[
            checks.schema_result(store, [blocks.VALIDATION_REPORT], keys),
            checks.billed_ratio(report),
            checks.hits_within_input(report),
        ],
    )
