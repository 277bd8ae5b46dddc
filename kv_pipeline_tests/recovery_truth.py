"""Recovered structure held against what transcripts say of the same traffic."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS
from kv_pipeline.sources.transcripts.reader import MAIN_AGENT, read_transcript
from kv_pipeline.store import Store

MIN_SAME_AGENT: Final = 0.99
_ROW = ["database_id", "billed_row_id"]


def hide_transcripts(user_folder: Path, to: Path, *, has_headers: bool = True) -> None:
    """Copy a user's databases, and nothing else; without headers they are as older proxies and clients leave them."""
    to.mkdir(parents=True)
    for database in sorted(user_folder.glob("*.db")):
        copy = shutil.copy(database, to / database.name)
        if not has_headers:
            with closing(sqlite3.connect(copy)) as connection, connection:
                connection.execute("UPDATE requests SET headers = '{}'")


class SameAgent(NamedTuple):
    """Of all pairs of requests: how many said to be one agent's are so, and how many that are, are said to be."""

    precision: float
    recall: float


def beginnings(user_folder: Path) -> dict[str, str]:
    """Sessions by the first answer in their transcripts: a resumed one, which copies its history, has the first's."""
    found: dict[str, str] = {}
    for path in sorted((user_folder / "projects").rglob("*.jsonl")):
        for answer in read_transcript(path, path.name).answers:
            if answer.agent_id == MAIN_AGENT:
                found.setdefault(answer.session_id, answer.message_id)
    return found


def same_agent(transcribed: Store, recovered: Store, user: str, known_as: Mapping[str, str] | None = None) -> SameAgent:
    """Pairwise precision and recall; a request that only one side has is of an agent of its own on the other.

    Args:
        transcribed: The truth: made with transcripts.
        recovered: Made without.
        user: Whose traffic.
        known_as: Names of sessions; main threads of sessions of one name are taken as one agent.
    """
    agents = [_agents(transcribed, user, "true", known_as), _agents(recovered, user, "found")]
    both = agents[0].join(agents[1], on=_ROW, how="full", coalesce=True)
    n_same = _n_pairs(both.drop_nulls(), ["true", "found"])
    n_found, n_true = _n_pairs(both.drop_nulls("found"), ["found"]), _n_pairs(both.drop_nulls("true"), ["true"])
    return SameAgent(n_same / n_found, n_same / n_true)


def _agents(store: Store, user: str, name: str, known_as: Mapping[str, str] | None = None) -> pl.DataFrame:
    conversation = pl.col("conversation_id")
    session = conversation.str.strip_prefix(f"{user}/").replace(known_as or {})
    holder = pl.when(agent_id=MAIN_AGENT).then(session).otherwise(conversation)
    requests = store.read(CONVERSATION_REQUESTS, [user])
    return requests.select(*_ROW, pl.format("{} {}", holder, "agent_id").alias(name))


def _n_pairs(frame: pl.DataFrame, by: list[str]) -> int:
    n = pl.col("len")
    return int(frame.group_by(by).len().select((n * (n - 1) // 2).sum()).item())


def tree(store: Store, user: str) -> list[tuple[Any, ...]]:
    """Agents by their first request: its parent's, type, whether a fork, depth, size, whether a call names it.

    Warm-ups stand anywhere, since nothing says whose they are.
    """
    first = (
        store.read(CONVERSATION_REQUESTS, [user])
        .sort("requested_at_utc", *_ROW)
        .group_by("conversation_id", "agent_id", maintain_order=True)
        .agg(pl.format("{} {}", *_ROW).first().alias("first"))
    )
    agent = ["conversation_id", "agent_id"]
    return sorted(
        store.read(AGENTS, [user])
        .filter(pl.col("n_requests") > 0)
        .join(first, on=agent)
        .join(
            first.rename({"agent_id": "parent_agent_id", "first": "parent"}),
            on=["conversation_id", "parent_agent_id"],
            how="left",
        )
        .with_columns(parent=pl.when(pl.col("subagent_type").ne_missing("warmup")).then("parent"))
        .select(
            "first",
            pl.col("parent").fill_null(""),
            pl.col("subagent_type").fill_null(""),
            "is_fork",
            "depth",
            "n_requests",
            pl.col("link").is_in(["main", "none"]),
        )
        .rows()
    )


def places(store: Store, user: str) -> set[tuple[Any, ...]]:
    """Of each traced request: which answer counts, and whether it follows a compaction."""
    columns = [*_ROW, "answer_row_id", "n_replays", "is_after_compaction", "agent_request_index"]
    return set(store.read(CONVERSATION_REQUESTS, [user]).select(columns).rows())
