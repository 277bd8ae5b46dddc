"""Recovered structure held against what transcripts say of the same traffic."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS
from kv_pipeline.store import Store

_ROW = ["database_id", "billed_row_id"]


class SameAgent(NamedTuple):
    """Of all pairs of requests: how many of those said to be one agent's are, and how many of those that are, said so."""

    precision: float
    recall: float


def same_agent(transcribed: Store, recovered: Store, user: str) -> SameAgent:
    """Pairwise precision and recall; a request that only one side has is of an agent of its own on the other."""
    agents = [_agents(store, user, name) for store, name in ((transcribed, "true"), (recovered, "found"))]
    both = agents[0].join(agents[1], on=_ROW, how="full", coalesce=True)
    n_same = _n_pairs(both.drop_nulls(), ["true", "found"])
    n_found, n_true = _n_pairs(both.drop_nulls("found"), ["found"]), _n_pairs(both.drop_nulls("true"), ["true"])
    return SameAgent(n_same / n_found, n_same / n_true)


def _agents(store: Store, user: str, name: str) -> pl.DataFrame:
    requests = store.read(CONVERSATION_REQUESTS, [user])
    return requests.select(*_ROW, pl.format("{} {}", "conversation_id", "agent_id").alias(name))


def _n_pairs(frame: pl.DataFrame, by: list[str]) -> int:
    n = pl.col("len")
    return int(frame.group_by(by).len().select((n * (n - 1) // 2).sum()).item())
