"""Which request belongs to which conversation, agent and turn; and why the others belong to none.

Transcripts name the answers they received by message id; databases hold the requests. A turn that an older proxy
recorded twice is one request: its answer is the row that the transcript names, its bill the streaming twin's, which
came first. What logs record beyond all transcripts has its structure from `core.recovered`.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import polars as pl

from kv_pipeline.core.recovered import Recovered
from kv_pipeline.queries import collected
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import APPROXIMATE, MOST_EXACT_FIRST, REBUILT

ROW = ("database_id", "row_id")
REQUEST_ORDER = ("requested_at_utc", "n_messages", "database_id", "billed_row_id")
"""Requests of one conversation share seconds: by time, then by message count, then as they were recorded."""


class ConversationIndex(NamedTuple):
    """One user's conversations: frames of the tables of the same names."""

    requests: pl.DataFrame
    agents: pl.DataFrame
    unindexed: pl.DataFrame
    conversations: pl.DataFrame


def index_conversations(
    user_id: str,
    raw_requests: pl.DataFrame,
    message_index: pl.DataFrame,
    answers: pl.DataFrame,
    agents: pl.DataFrame,
    compactions: pl.DataFrame,
    recovered: Recovered | None = None,
) -> ConversationIndex:
    """Join one user's recordings and transcripts.

    Args:
        user_id: The user.
        raw_requests: `RAW_REQUESTS` of all the user's databases.
        message_index: `MESSAGE_INDEX` of the same.
        answers: One row per (session, agent, message) of all the user's transcripts.
        agents: One row per (session, agent).
        compactions: One row per compaction boundary.
        recovered: Answers and agents of sessions that no transcript records; none of those above.
    """
    transcribed = agents.lazy().select("session_id").unique()
    if recovered is not None:
        answers, agents = pl.concat([answers, recovered.answers]), pl.concat([agents, recovered.agents])
        compactions = pl.concat([compactions, recovered.compactions])
    owned = owners(answers, agents)
    rows, index = raw_requests.lazy(), message_index.lazy()
    turns = _turns(rows, index, owned.lazy())
    requests = _placed(user_id, turns, _after_compaction(owned.lazy(), compactions.lazy())).pipe(collected)
    known = _conversations(user_id, requests, owned.lazy(), agents, compactions.lazy(), transcribed)
    return ConversationIndex(
        requests=requests.select(polars_schema(CONVERSATION_REQUESTS).names()),
        agents=_agents(user_id, agents.lazy(), requests.lazy()).pipe(collected),
        unindexed=_unindexed(rows, index, requests.lazy()).pipe(collected),
        conversations=known.pipe(collected),
    )


def owners(answers: pl.DataFrame, agents: pl.DataFrame) -> pl.DataFrame:
    """The one session and agent that each answer counts for.

    A resumed session copies the history of the one before: the copy's owner is the session that ends with it, that is
    the one with no answers of its own, otherwise the one whose own answers came first. Within a session a fork repeats
    an answer of its parent, which therefore comes before forks, and the main thread before all.

    Returns:
        One row per message_id: session_id, agent_id, line, answered_at.
    """
    n_sessions = pl.col("session_id").n_unique().over("message_id")
    own = pl.col("answered_at").filter(pl.col("is_own")).min().over("session_id")
    return (
        answers.lazy()
        .join(agents.lazy().select("session_id", "agent_id", "is_fork", "depth"), on=["session_id", "agent_id"])
        .with_columns(is_own=n_sessions == 1)
        .with_columns(first_own=own, n_answers=pl.len().over("session_id"))
        .sort("first_own", "n_answers", "session_id", "depth", "is_fork", "agent_id", nulls_last=False)
        .unique("message_id", keep="first", maintain_order=True)
        .select("message_id", "session_id", "agent_id", "line", "answered_at")
        .pipe(collected)
    )


def _turns(rows: pl.LazyFrame, message_index: pl.LazyFrame, owned: pl.LazyFrame) -> pl.LazyFrame:
    """One row per answer that a transcript and a database know, with the times of the row that was billed."""
    billed = rows.select(
        "database_id", "requested_at_utc", "exactness", billed_row_id="row_id", billed_digest="row_digest",
        model=pl.col("routed_model").fill_null(pl.col("model")), n_messages=pl.col("message_segments").list.len(),
        marked=pl.col("breakpoints").list.eval(pl.element().struct.field("ttl")).list.min(),  # "1h" before "5m"
    )  # fmt: skip
    answer = rows.select(*ROW, "stop_reason", "row_digest", "recorded_by")
    return (
        message_index.join(owned, on="message_id")
        .join(answer, on=ROW)
        .sort(*_best_recorded_first())
        .unique("message_id", keep="first", maintain_order=True)
        .join(billed, on=["database_id", "billed_row_id"])
        .rename({"row_id": "answer_row_id"})
    )


def _best_recorded_first() -> list[pl.Expr]:
    """Order of rows that recorded one answer; the first counts.

    Of copies of a database, the one with both twins. Then the recorder with most of the conversation, since others may
    spell bodies differently, and prefixes end where spelling changes; then the most exact one.
    """
    n_recorded = pl.col("message_id").n_unique().over("session_id", "recorded_by")
    exactness = pl.col("recorded_by").replace_strict({name: n for n, name in enumerate(MOST_EXACT_FIRST)}, default=99)
    return [pl.col("n_replays") == 0, -n_recorded.cast(pl.Int64), exactness, pl.col("database_id"), pl.col("row_id")]


def _after_compaction(owned: pl.LazyFrame, compactions: pl.LazyFrame) -> pl.LazyFrame:
    """Message ids of the first answers after a compaction boundary."""
    return (
        compactions.select("session_id", "agent_id", pl.col("line").alias("boundary"))
        .join(owned, on=["session_id", "agent_id"])
        .filter(pl.col("line") > pl.col("boundary"))
        .sort("line")
        .unique(["session_id", "agent_id", "boundary"], keep="first")
        .select("message_id")
        .unique()
        .with_columns(is_after_compaction=True)
    )


def _placed(user_id: str, turns: pl.LazyFrame, after_compaction: pl.LazyFrame) -> pl.LazyFrame:
    agent = ["conversation_id", "agent_id"]
    starts_turn = pl.col("stop_reason").shift(1).over(agent).ne_missing("tool_use")
    return (
        turns.with_columns(conversation_id=pl.lit(user_id + "/") + pl.col("session_id"))
        .join(after_compaction, on="message_id", how="left")
        .with_columns(pl.col("is_after_compaction").fill_null(value=False))
        .sort("conversation_id", *REQUEST_ORDER)
        .with_columns(
            request_index=pl.int_range(pl.len(), dtype=pl.UInt32).over("conversation_id"),
            agent_request_index=pl.int_range(pl.len(), dtype=pl.UInt32).over(agent),
            turn_index=starts_turn,
        )
        .with_columns(turn_index=(pl.col("turn_index").cum_sum().over(agent) - 1).cast(pl.UInt32))
    )


def _agents(user_id: str, agents: pl.LazyFrame, requests: pl.LazyFrame) -> pl.LazyFrame:
    counts = requests.group_by("conversation_id", "agent_id").agg(n_requests=pl.len())
    return (
        agents.with_columns(conversation_id=pl.lit(user_id + "/") + pl.col("session_id"))
        .join(counts, on=["conversation_id", "agent_id"], how="left")
        .with_columns(pl.col("n_requests").fill_null(0))
        .select(polars_schema(AGENTS).names())
        .sort("conversation_id", "depth", "agent_id")
    )


def _unindexed(rows: pl.LazyFrame, message_index: pl.LazyFrame, requests: pl.LazyFrame) -> pl.LazyFrame:
    """Every recorded request that no trace holds. A turn's other replays are twins, not losses."""
    billed = requests.select("database_id", row_id="billed_row_id")
    answered = requests.select("database_id", row_id="answer_row_id")
    traced = pl.concat([billed, answered]).unique()
    contents = _contents(rows, requests)
    known_messages = rows.join(traced, on=ROW, how="semi").select("message_id").drop_nulls().unique()
    return (
        rows.join(traced, on=ROW, how="anti")
        .join(message_index.select(*ROW, "twin_role", "billed_row_id"), on=ROW, how="left")
        .join(contents.same, on="content_id", how="left")
        .join(known_messages.with_columns(is_traced=True), on="message_id", how="left")
        .pipe(_with_context, contents.started)
        .with_columns(reason=_reason(), conversation_id=pl.coalesce("conversation_id", "context_id"))
        .select(polars_schema(UNINDEXED_REQUESTS).names())
        .sort(*ROW)
    )


class _Contents(NamedTuple):
    """Traced content: same (content_id → conversation) and started (first message → conversation)."""

    same: pl.LazyFrame
    started: pl.LazyFrame


def _contents(rows: pl.LazyFrame, requests: pl.LazyFrame) -> _Contents:
    traced = requests.select("database_id", "conversation_id", row_id="billed_row_id").join(rows, on=ROW)
    first_message = pl.col("message_segments").list.first().alias("first_message")
    return _Contents(
        same=traced.sort("conversation_id").unique("content_id", keep="first").select("content_id", "conversation_id"),
        started=traced.select("database_id", first_message, "requested_at_utc", context_id="conversation_id")
        .drop_nulls("first_message")
        .sort("requested_at_utc", "context_id"),
    )


def _with_context(rows: pl.LazyFrame, started: pl.LazyFrame) -> pl.LazyFrame:
    """The conversation whose latest request before began with the same message: compactions and other side requests."""
    return (
        rows.with_columns(first_message=pl.col("message_segments").list.first())
        .sort("requested_at_utc")
        .join_asof(
            started,
            on="requested_at_utc",
            by=["database_id", "first_message"],
            strategy="backward",
            check_sortedness=False,
        )  # both are sorted just above; Polars can't check it within groups
    )


def _reason() -> pl.Expr:
    return (
        pl.when(pl.col("is_traced").is_not_null()).then(pl.lit("duplicate"))
        .when(pl.col("outcome") != "ok").then(pl.lit("failed_attempt"))
        .when(pl.col("twin_role") == "replay_twin").then(pl.lit("replay_twin"))
        .when(pl.col("conversation_id").is_not_null()).then(pl.lit("retry"))
        .when(pl.col("tools_segment").is_null() | pl.col("context_id").is_not_null()).then(pl.lit("side_request"))
        .otherwise(pl.lit("unknown"))
    )  # fmt: skip


def _conversations(
    user_id: str,
    requests: pl.DataFrame,
    owned: pl.LazyFrame,
    agents: pl.DataFrame,
    compactions: pl.LazyFrame,
    transcribed: pl.LazyFrame,
) -> pl.LazyFrame:
    answers = (
        owned.join(transcribed, on="session_id", how="semi").group_by("session_id").agg(n_transcript_answers=pl.len())
    )
    found = (
        requests.lazy()
        .group_by("session_id")
        .agg(
            n_requests=pl.len(),
            n_rebuilt=(pl.col("exactness") == REBUILT).sum(),
            n_approximate=(pl.col("exactness") == APPROXIMATE).sum(),
            n_agents=pl.col("agent_id").n_unique(),
            first_request_at_utc=pl.col("requested_at_utc").min(),
            last_request_at_utc=pl.col("requested_at_utc").max(),
            models=pl.col("model").unique().sort(),
            marked_lifetime=pl.col("marked").min(),
        )
    )
    counted = ("n_requests", "n_rebuilt", "n_approximate", "n_agents", "n_compactions", "n_transcript_answers")
    counts = [pl.col(counted).fill_null(0)]
    return (
        agents.lazy().select("session_id").unique()
        .join(transcribed.with_columns(structure=pl.lit("transcripts")), on="session_id", how="left")
        .join(answers, on="session_id", how="left")
        .join(found, on="session_id", how="left")
        .join(compactions.group_by("session_id").agg(n_compactions=pl.len()), on="session_id", how="left")
        .join(_fingerprints(requests, agents).lazy(), on="session_id", how="left")
        .with_columns(*counts, pl.col("models").fill_null([]), pl.col("fingerprint").fill_null(""))
        .with_columns(pl.col("structure").fill_null("content"))
        .with_columns(
            conversation_id=pl.lit(user_id + "/") + pl.col("session_id"),
            user_id=pl.lit(user_id),
            match_rate=pl.when(pl.col("structure") == "transcripts").then(
                (pl.col("n_requests") / pl.col("n_transcript_answers")).fill_nan(0.0)
            ),
        )
        .select(polars_schema(CONVERSATIONS).names())
        .sort("conversation_id")
    )  # fmt: skip


def _fingerprints(requests: pl.DataFrame, agents: pl.DataFrame) -> pl.DataFrame:
    """Per session a digest of its requests, their rows' digests, and its agents."""
    facts = ["request_index", "agent_id", "turn_index", "is_after_compaction", "database_id", "billed_row_id",
             "answer_row_id", "billed_digest", "row_digest"]  # fmt: skip
    agent_rows = dict[str, list[object]]()
    for session_id, *agent in agents.sort("session_id", "agent_id").iter_rows():
        agent_rows.setdefault(session_id, []).append(agent)
    rows = requests.select("session_id", *facts).rows_by_key("session_id")
    return pl.DataFrame(
        [(session_id, _digest(rows[session_id], agent_rows.get(session_id))) for session_id in rows],
        schema={"session_id": pl.String, "fingerprint": pl.String},
        orient="row",
    )


def _digest(*facts: object) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
