"""Structure of recorded requests that no transcript names.

Logs and HAR files are recovered always, databases of a user who has no transcripts at all, too; `kv-pipeline recover`
makes a store recover those of all users, and otherwise if wanted.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.core.conversations import ROW
from kv_pipeline.core.lanes import DEFAULT_MIN_SHARED
from kv_pipeline.core.recovered import Recovered, RecoveryOptions, nothing_recovered, recover
from kv_pipeline.names import safe_name
from kv_pipeline.schemas.requests import CLAUDE_CODE_PROXY, CLAUDE_TRACE
from kv_pipeline.sources.transcripts.frames import TranscriptFrames
from kv_pipeline.steps.recovered_content import load_content
from kv_pipeline.store import Store

POLICY_STATE: Final = "recovery"


class RecoveryPolicy(NamedTuple):
    """What of a store's recordings is recovered, and how; kept in the store.

    Attributes:
        min_shared: Share of a request that the next must begin with, 0 to 1.
        min_prefix_tokens: Least length of a main thread's tools and system prompt.
        is_everything: Whether databases of users with transcripts are recovered, too.
        excludes_indexed: Whether what a transcript covers is left to it.
        workers: Processes that read content; changes nothing but the time it takes.
    """

    min_shared: float = DEFAULT_MIN_SHARED
    min_prefix_tokens: int = 0
    is_everything: bool = False
    excludes_indexed: bool = True
    workers: int = 1

    @classmethod
    def of(cls, store: Store) -> RecoveryPolicy:
        """The store's."""
        kept = store.state(POLICY_STATE)
        if not kept:
            return cls()
        return cls(
            float(kept["min_shared"]),
            int(kept["min_prefix_tokens"]),
            kept["is_everything"] == "True",
            kept["excludes_indexed"] == "True",
            int(kept["workers"]),
        )

    @property
    def fingerprint(self) -> str:
        """Changes when other conversations may be recovered; as before there were policies for the default one."""
        return "" if self == RecoveryPolicy(workers=self.workers) else repr(self._replace(workers=1))

    def keep(self, store: Store) -> None:
        """Make it the store's."""
        store.update_state(POLICY_STATE, {name: str(value) for name, value in self._asdict().items()})


def recovered_structure(
    store: Store, requests: pl.DataFrame, message_index: pl.DataFrame, transcribed: TranscriptFrames
) -> Recovered:
    """Conversations in a user's recordings, less those that transcripts name an answer or the session of.

    Args:
        store: The store.
        requests: `RAW_REQUESTS` of all the user's recordings.
        message_index: `MESSAGE_INDEX` of the same.
        transcribed: What the user's transcripts say.
    """
    policy = RecoveryPolicy.of(store)
    wants_databases = policy.is_everything or transcribed.agents.is_empty()
    if not wants_databases and (requests["recorded_by"] == CLAUDE_CODE_PROXY).all():
        return nothing_recovered()  # the usual user, whose transcripts say it all
    named = pl.col("message_id").is_in(transcribed.answers["message_id"].implode())
    in_named_session = pl.col("session_id").is_in(transcribed.agents["session_id"].implode())
    is_wanted = pl.lit(wants_databases) | (pl.col("recorded_by") != CLAUDE_CODE_PROXY)
    covered = (named | in_named_session).any().over("session_id") & pl.col("session_id").is_not_null()
    turns = (
        _turns(requests.pipe(_with_session), message_index)
        .filter(is_wanted)
        .with_columns(is_indexed=named & policy.excludes_indexed, named_agent="named_agent_id")
    )
    wanted = turns.filter(~covered) if policy.excludes_indexed else turns
    if wanted["is_indexed"].all():
        wanted = wanted.clear()
    content = load_content(store, wanted, policy.workers)
    options = RecoveryOptions(policy.min_shared, policy.min_prefix_tokens)
    return recover(content.requests, content.facts, options)


def _with_session(requests: pl.DataFrame) -> pl.DataFrame:
    """The session that a request names as a path part; else, of a log, its name, which keeps its suffix.

    A log of which other recordings have answers, too, is no conversation of its own: content tells what is.
    """
    names = {name: safe_name(name) for name in requests["session_id"].drop_nulls().unique()}
    recording = pl.col("database_id").str.splitn("/", 2).struct.field("field_1").str.replace_all("/", "+", literal=True)
    named = pl.col("session_id").replace_strict(names, return_dtype=pl.String, default=None)
    shared = requests.drop_nulls("message_id").filter(pl.col("database_id").n_unique().over("message_id") > 1)
    is_log = (pl.col("recorded_by") == CLAUDE_TRACE) & ~pl.col("database_id").is_in(shared["database_id"].implode())
    return requests.with_columns(session_id=pl.coalesce(named, pl.when(is_log).then(recording)))


def _turns(requests: pl.DataFrame, message_index: pl.DataFrame) -> pl.DataFrame:
    """Answered requests that came first, with the message id of the answer that the client went by: the last replay's.

    What two recordings hold counts once.
    """
    last = (
        message_index.drop_nulls("message_id")
        .sort("row_id")
        .group_by("database_id", row_id="billed_row_id")
        .agg(pl.col("message_id").last(), pl.col("n_replays").max())
    )
    return (
        requests.drop("message_id")
        .join(last, on=ROW)
        .sort(pl.col("n_replays") == 0, "database_id", "row_id")
        .unique("message_id", keep="first", maintain_order=True)
    )
