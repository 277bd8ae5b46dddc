"""What we know of a conversation beyond its trace: goes into `_analysis`, or into a file beside a strict trace."""

from __future__ import annotations

import polars as pl

from kv_pipeline.core.hashing import HASH_SCHEME
from kv_pipeline.core.tokenizer import TOKENIZER_NAME
from kv_pipeline.export.options import ExportOptions
from kv_pipeline.export.pieces import Json
from kv_pipeline.schemas.blocks import VALIDATION_REPORT
from kv_pipeline.schemas.conversations import UNINDEXED_REQUESTS
from kv_pipeline.store import Store

DEFINITION = "hit rate = cache read / (input + cache read + cache write), over tokens"


def trace_analysis(
    store: Store, conversation_id: str, requests: pl.DataFrame, agents: list[Json], options: ExportOptions
) -> Json:
    """Counts and rates of the requests that a trace holds.

    Args:
        store: The store.
        conversation_id: Conversation that the trace is of.
        requests: Its TRACES, or the part of it that is exported.
        agents: Its AGENTS as dicts.
        options: What was asked for.
    """
    report = store.read(VALIDATION_REPORT, [conversation_id]).join(
        requests.select("request_index"), on="request_index", how="semi"
    )
    user_id = conversation_id.partition("/")[0]
    unindexed = store.read(UNINDEXED_REQUESTS, [user_id]).filter(pl.col("conversation_id") == conversation_id)
    present = set(requests["agent_id"])
    return {
        "generator": "kv_pipeline",
        "tokenizer": TOKENIZER_NAME,
        "hash_scheme": HASH_SCHEME,
        "definition": DEFINITION,
        "billed": _billed(report),
        "simulated": _simulated(report),
        "estimated_tokens": int(requests["estimated_tokens"].sum()),
        "requests_not_traced": dict(unindexed["reason"].value_counts(sort=True, name="n").sort("reason").iter_rows()),
        "compacted_before_t": requests.filter("is_after_compaction")["t_s"].to_list(),
        "agents": [] if options.anonymize else [_agent(agent) for agent in agents if agent["agent_id"] in present],
    }


def _agent(agent: Json) -> Json:
    return {key: agent[key] for key in ("agent_id", "parent_agent_id", "link", "is_fork", "depth")}


def _billed(report: pl.DataFrame) -> Json:
    sums = (
        report.unique("request_index")
        .drop_nulls("billed_prompt_tokens")
        .select("billed_prompt_tokens", "billed_read_tokens")
        .sum()
        .row(0)
    )
    return {
        "prompt_tokens": sums[0],
        "read_tokens": sums[1],
        "hit_rate": sums[1] / sums[0] if sums[0] else 0.0,
    }


def _simulated(report: pl.DataFrame) -> list[Json]:
    return (
        report.group_by("scope", "lifetime")
        .agg(pl.col("prompt_tokens", "hit_tokens").cast(pl.Int64).sum())
        .with_columns(hit_rate=(pl.col("hit_tokens") / pl.col("prompt_tokens")).fill_nan(0.0))
        .sort("scope", "lifetime")
        .to_dicts()
    )
