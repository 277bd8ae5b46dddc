"""The six assets. Each reads its partitions' keys, calls one step, and reports counts: never content, never paths."""

# No `from __future__ import annotations` here: Dagster reads the context annotation as a type.

import time
from collections import Counter
from collections.abc import Sequence
from typing import Optional

import dagster as dg
import polars as pl
from pydantic import Field

from kv_pipeline import memory, progress, token_process
from kv_pipeline.defs import checks
from kv_pipeline.defs.event_log import delete_dynamic_partitions
from kv_pipeline.defs.metadata import column_schema, notice_counts, row_counts
from kv_pipeline.defs.partitions import CONVERSATIONS, DATABASES, claim_range, keys_of_run
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.errors import InputError, StoreError
from kv_pipeline.logs import partition_done
from kv_pipeline.reports.pictures import summary_markdown
from kv_pipeline.schemas import blocks, explanations, requests
from kv_pipeline.schemas import conversations as conversation_tables
from kv_pipeline.steps import conversations as steps
from kv_pipeline.steps import plan, versions
from kv_pipeline.steps.databases import index_database, ingest_database
from kv_pipeline.steps.fleet import FLEET, roll_up
from kv_pipeline.steps.index import INDEX_MODELS, conversations, index_user, user_databases
from kv_pipeline.steps.transcribed import TRANSCRIBED_MODELS, transcribed_partition
from kv_pipeline.store import Store


@dg.asset(
    partitions_def=DATABASES,
    group_name="databases",
    kinds={"sqlite", "polars", "parquet"},
    code_version=versions.RAW_REQUESTS_VERSION,
    metadata=column_schema(requests.RAW_REQUESTS),
    check_specs=[
        checks.schema_spec("raw_requests"),
        checks.quality_spec("raw_requests", "recorded_once", "No request stands in two databases."),
    ],
)
def raw_requests(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """One row per API request of a database or log; content held once, as segments."""
    store, landing, keys = pipeline.open_store(), pipeline.landing(), keys_of_run(context)
    advance = progress.counter("raw_requests", len(keys))
    notices: Counter[str] = Counter()
    for key in keys:
        if key not in landing.databases:
            remedy = "Put it back to read it again; what was read from it earlier is still in the store."
            raise InputError("missing_database", key, "it is not in the landing folder", remedy)
        started_s = time.monotonic()
        content = ingest_database(store, landing.databases[key])
        notices.update(skip.reason for skip in content.skips)
        counts = {"requests": content.requests.height, "notices": len(content.skips)}
        partition_done("raw_requests", key, time.monotonic() - started_s, **counts)
        advance(1)
        del content
    memory.give_back()
    frame = store.read(requests.RAW_REQUESTS, keys, ["request_id"])
    return dg.MaterializeResult(
        metadata={
            **row_counts(store, requests.RAW_REQUESTS, keys, frame.height),
            **notice_counts(notices),
        },
        check_results=[
            checks.schema_result(store, [requests.RAW_REQUESTS, requests.SEGMENTS, requests.SKIPPED_INPUT], keys),
            checks.requests_recorded_once(frame),
        ],
    )


@dg.asset(
    deps=[raw_requests],
    partitions_def=DATABASES,
    group_name="databases",
    kinds={"polars", "parquet"},
    code_version=versions.RAW_REQUESTS_VERSION,
    metadata=column_schema(requests.MESSAGE_INDEX),
    check_specs=[
        checks.schema_spec("message_index"),
        checks.quality_spec("message_index", "message_ids_unique", "A message id names one request."),
    ],
)
def message_index(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Message id to request, and which request is whose replay twin."""
    store, keys = pipeline.open_store(), keys_of_run(context)
    advance = progress.counter("message_index", len(keys))
    for key in keys:
        started_s = time.monotonic()
        index = index_database(store, key)
        partition_done("message_index", key, time.monotonic() - started_s, messages=index.height)
        advance(1)
    frame = store.read(requests.MESSAGE_INDEX, keys, ["message_id", "twin_role"])
    twins = frame.filter(pl.col("twin_role") == "replay_twin").height
    return dg.MaterializeResult(
        metadata={**row_counts(store, requests.MESSAGE_INDEX, keys, frame.height), "replay_twins": twins},
        check_results=[
            checks.schema_result(store, [requests.MESSAGE_INDEX], keys),
            checks.messages_unique(frame),
        ],
    )


class IndexConfig(dg.Config):
    """What to index."""

    all_users: bool = Field(default=False, description="Index every user again, not only those with changes.")
    users: Optional[list[str]] = Field(default=None, description="Of those with changes only these; all if not given.")  # noqa: UP045


@dg.asset(
    deps=[message_index],
    group_name="conversations",
    kinds={"polars", "parquet"},
    code_version=versions.CONVERSATION_INDEX_VERSION,
    metadata=column_schema(conversation_tables.CONVERSATIONS),
    check_specs=[
        checks.schema_spec("conversation_index"),
        checks.quality_spec("conversation_index", "answers_found", "Transcripts' answers are in the databases."),
    ],
)
def conversation_index(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, config: IndexConfig
) -> dg.MaterializeResult:
    """Requests joined with transcripts: conversation, agent tree and turn; one set of files a user.

    Only users whose databases or transcripts changed are indexed again, unless the run's config asks for all.
    Answers that no database holds get requests from the user's transcripts, rows of raw_requests like any other.
    Conversations that are new or changed become the end of the partition list, so one range covers exactly them.
    The columns below are those of the table of conversations.
    """
    store, landing = pipeline.open_store(), pipeline.landing()
    stale = landing.users if config.all_users else plan.stale_users(store, landing)
    users = [user for user in stale if config.users is None or user in config.users]
    advance = progress.counter("conversation_index", len(users))
    notices = Counter(skip.reason for skip in landing.skips)
    for user in users:
        started_s = time.monotonic()
        made = index_user(store, user, plan.transcripts_of(landing, user))
        notices.update(skip.reason for skip in made.skips)
        counts = {"requests": made.tables[0].height, "notices": len(made.skips)}
        partition_done("conversation_index", user, time.monotonic() - started_s, **counts)
        advance(1)
        del made
    memory.give_back()
    to_make = _register_conversations(context.instance, store)
    known = conversations(store)
    indexed = store.partitions(conversation_tables.CONVERSATIONS.name)
    transcribed = [transcribed_partition(user) for user in indexed]
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": known.height,
            "users_indexed": len(users),
            "conversations_to_make": len(to_make),
            "recordings_not_in_landing": len(plan.not_in_landing(store, landing)),
            "requests_rebuilt_from_transcripts": int(known["n_rebuilt"].sum()),
            "requests_approximated_from_transcripts": int(known["n_approximate"].sum()),
            **notice_counts(notices),
        },
        check_results=[
            checks.schema_result(store, INDEX_MODELS, indexed, *((model, transcribed) for model in TRANSCRIBED_MODELS)),
            checks.answers_found(known),
        ],
    )


def _register_conversations(instance: dg.DagsterInstance, store: Store) -> list[str]:
    obsolete = plan.obsolete_conversations(store)
    plan.remove_conversations(store, obsolete)
    delete_dynamic_partitions(instance, str(CONVERSATIONS.name), obsolete)
    to_make = plan.stale_conversations(store)
    if to_make:
        claim_range(instance, CONVERSATIONS, to_make)
    elif obsolete:
        roll_up(store)  # no run of conversations follows that would
    return to_make


def _indexed(store: Store, keys: Sequence[str]) -> Sequence[str]:
    """The keys, if conversation_index has requests of all of them: partitions can be added by hand, too."""
    users = sorted({key.partition("/")[0] for key in keys})
    known = store.read(conversation_tables.CONVERSATIONS, users)
    unknown = set(keys) - set(plan.traced(known)["conversation_id"])
    if unknown:
        raise StoreError(f"conversation_index has no requests of {len(unknown)} of the run's conversations.")
    return keys


@dg.asset(
    deps=[conversation_index],
    partitions_def=CONVERSATIONS,
    group_name="conversations",
    kinds={"polars", "parquet"},
    code_version=versions.TOKENIZED_BLOCKS_VERSION,
    metadata=column_schema(blocks.TOKENIZED_BLOCKS),
    check_specs=[checks.schema_spec("tokenized_blocks")],
)
def tokenized_blocks(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Token counts per section and chained block hashes; only blocks that no earlier request had."""
    store = pipeline.open_store()
    keys = _indexed(store, keys_of_run(context))
    made = steps.tokenize_conversations(store, keys, progress.counter("tokenized_blocks", len(keys)))
    token_process.let_go()  # reading the next database starts another
    memory.give_back()
    return dg.MaterializeResult(
        metadata=row_counts(store, blocks.TOKENIZED_BLOCKS, keys, made.n_rows),
        check_results=[checks.schema_result(store, [blocks.TOKENIZED_BLOCKS], keys)],
    )


@dg.asset(
    deps=[tokenized_blocks],
    partitions_def=CONVERSATIONS,
    group_name="results",
    kinds={"polars", "parquet"},
    code_version=versions.TRACES_VERSION,
    metadata=column_schema(blocks.TRACES),
    check_specs=[checks.schema_spec("traces")],
)
def traces(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """One row per request in trace order: timing, sizes, content types. JSON on export."""
    store = pipeline.open_store()
    keys = _indexed(store, keys_of_run(context))
    made = steps.trace_conversations(store, keys, progress.counter("traces", len(keys)))
    return dg.MaterializeResult(
        metadata=row_counts(store, blocks.TRACES, keys, made.n_rows),
        check_results=[checks.schema_result(store, [blocks.TRACES], keys)],
    )


@dg.asset(
    deps=[traces],
    partitions_def=CONVERSATIONS,
    group_name="results",
    kinds={"polars", "parquet"},
    code_version=versions.VALIDATION_VERSION,
    metadata=column_schema(blocks.VALIDATION_REPORT),
    check_specs=[
        checks.schema_spec("validation_report"),
        checks.quality_spec("validation_report", "billed_ratio_plausible", "The bill fits the counted tokens."),
        checks.quality_spec("validation_report", "hits_within_input", "No request hits more than it has."),
    ],
)
def validation_report(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Simulated against billed cache reads, per request; then the fleet roll-up over everything in the store.

    Of runs that work on the store at the same time, the last one to end does the roll-up.
    """
    store = pipeline.open_store()
    keys = _indexed(store, keys_of_run(context))
    made = steps.validate_conversations(store, keys, progress.counter("validation_report", len(keys)))
    users = sorted({key.partition("/")[0] for key in keys})
    with store.alone() as is_alone:  # else the last of the runs that share the store does it
        fleet = _rolled_up(context, store, keys[-1]) if is_alone else {}
    tokens = store.read(blocks.VALIDATION_REPORT, keys, ["prompt_tokens", "hit_tokens", "billed_prompt_tokens"])
    return dg.MaterializeResult(
        metadata={
            **row_counts(store, blocks.VALIDATION_REPORT, keys, made.n_rows),
            **fleet,
        },
        check_results=[
            checks.schema_result(
                store,
                [blocks.VALIDATION_REPORT],
                keys,
                (blocks.VALIDATION_SUMMARY, [FLEET]),
                (explanations.CACHE_REPORT, users),
                (explanations.WHAT_IF, users),
                (explanations.CONTENT_BLOCKS, [key for user in users for key in user_databases(store, user)]),
            ),
            checks.billed_ratio(tokens),
            checks.hits_within_input(tokens),
        ],
    )


def _rolled_up(context: dg.AssetExecutionContext, store: Store, last_key: str) -> dict[str, int]:
    """Do the roll-up, and show it on one partition: Dagster repeats what a result says in each partition's event."""
    summary = roll_up(store)
    if summary.height:
        pictures = {"figures": dg.MetadataValue.md(summary_markdown(store))}
        context.add_asset_metadata(pictures, partition_key=last_key)
    return {"fleet_conversations": summary["conversation_id"].n_unique()}
