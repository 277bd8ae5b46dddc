"""conversation_index: one user's transcripts joined with the user's recordings; of logs also what none records."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.core.conversations import ConversationIndex, index_conversations
from kv_pipeline.core.recovered import Recovered
from kv_pipeline.errors import Skip
from kv_pipeline.landing import UserTranscripts
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS
from kv_pipeline.schemas.transcripts import TRANSCRIPT_AGENTS, TRANSCRIPT_ANSWERS, TRANSCRIPT_COMPACTIONS
from kv_pipeline.sources.transcripts.frames import (
    TranscriptFrames,
    split_given_way,
    transcript_frames,
    with_vanished,
    without_given_way,
)
from kv_pipeline.sources.transcripts.reader import read_transcript
from kv_pipeline.steps.databases import CONTENT_STATE, MESSAGE_INDEX_STATE, write_skips
from kv_pipeline.steps.recovery import RecoveryPolicy, recovered_structure
from kv_pipeline.steps.transcribed import transcribed_partition, write_transcribed
from kv_pipeline.steps.versions import CONVERSATION_INDEX_VERSION
from kv_pipeline.store import Store

INDEX_STATE: Final = "conversation_index"
INDEX_MODELS: Final = (CONVERSATION_REQUESTS, AGENTS, UNINDEXED_REQUESTS, CONVERSATIONS)
TRANSCRIPT_MODELS: Final = (TRANSCRIPT_ANSWERS, TRANSCRIPT_AGENTS, TRANSCRIPT_COMPACTIONS)


class IndexedUser(NamedTuple):
    """What indexing a user gave."""

    tables: ConversationIndex
    skips: list[Skip]


def transcripts_partition(user_id: str) -> str:
    """Partition of skipped_input that a user's transcripts have."""
    return f"{user_id}/transcripts of the user"


def user_databases(store: Store, user_id: str) -> list[str]:
    """Databases of a user that the store holds, and the requests that were made from transcripts."""
    return [key for key in store.state(CONTENT_STATE) if key.partition("/")[0] == user_id]


def recordings(store: Store, user_id: str) -> list[str]:
    """Databases and logs of a user that the store holds."""
    return [key for key in user_databases(store, user_id) if key != transcribed_partition(user_id)]


def user_fingerprint(store: Store, user_id: str, transcripts: UserTranscripts) -> str:
    """Fingerprint of the inputs of a user's index: transcripts, and what the user's databases say."""
    content, indexed = store.state(CONTENT_STATE), store.state(MESSAGE_INDEX_STATE)
    databases = [(key, content[key], indexed.get(key)) for key in recordings(store, user_id)]
    policy = RecoveryPolicy.of(store).fingerprint
    digest = hashlib.blake2b(repr((transcripts.fingerprint, databases, policy)).encode(), digest_size=16)
    return f"{CONVERSATION_INDEX_VERSION}-{digest.hexdigest()}"


def index_user(store: Store, user_id: str, transcripts: UserTranscripts) -> IndexedUser:
    """Write a user's conversation_index."""
    fingerprint = user_fingerprint(store, user_id, transcripts)
    transcripts.fetch()
    read = [read_transcript(file.path, file.source) for file in transcripts.files]
    counting, given_way = split_given_way(read)
    known = TranscriptFrames(*(store.read(model, [user_id]) for model in TRANSCRIPT_MODELS))
    transcribed = with_vanished(transcript_frames(counting), without_given_way(known, counting, given_way))
    recorded = store.read(RAW_REQUESTS, recordings(store, user_id))
    notices = write_transcribed(store, user_id, recorded, transcripts.files, read, transcribed)
    requests = pl.concat([recorded, store.read(RAW_REQUESTS, [transcribed_partition(user_id)])])
    message_index = store.read(MESSAGE_INDEX, user_databases(store, user_id))
    recovered = recovered_structure(store, recorded, message_index, transcribed)
    joined = transcribed if RecoveryPolicy.of(store).excludes_indexed else _without(transcribed, recovered)
    index = index_conversations(user_id, requests, message_index, *joined, recovered)
    for model, frame in zip(INDEX_MODELS + TRANSCRIPT_MODELS, [*index, *transcribed], strict=True):
        store.write(model, user_id, frame)
    skips = [skip for transcript in read for skip in transcript.skips] + notices + _copies(requests)
    skips += _short(user_id, recovered.n_short)
    write_skips(store, transcripts_partition(user_id), skips)
    store.update_state(INDEX_STATE, {user_id: fingerprint})
    return IndexedUser(index, skips)


def _copies(requests: pl.DataFrame) -> list[Skip]:
    """Databases that repeat requests of the databases before them: copies, whole or in part."""
    request_id = pl.col("request_id")
    repeated = requests.filter(~request_id.is_first_distinct(), ~request_id.str.starts_with("row-"))["database_id"]
    remedy = "They are counted once. Remove the copy."
    return [
        Skip(key, None, "copied_rows", f"{n} of its requests stand in another database too", remedy, is_left_out=False)
        for key, n in sorted(Counter(repeated).items())
    ]


def _without(transcribed: TranscriptFrames, recovered: Recovered) -> TranscriptFrames:
    """What transcripts say of sessions and answers that were not recovered."""
    sessions = recovered.agents.select("session_id")
    answers, agents, compactions = (frame.join(sessions, on="session_id", how="anti") for frame in transcribed)
    return TranscriptFrames(answers.join(recovered.answers, on="message_id", how="anti"), agents, compactions)


def _short(user_id: str, n_short: int) -> list[Skip]:
    """Conversations that `--min-prefix-tokens` leaves out."""
    found = f"{n_short} conversations have shorter tools and system prompts than --min-prefix-tokens says"
    remedy = "They are taken as other clients' traffic. Run `kv-pipeline recover` with a lower number to have them."
    return [Skip(user_id, None, "short_prefix", found, remedy, is_left_out=False)] if n_short else []


def conversations(store: Store, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """CONVERSATIONS of all users."""
    return store.read(CONVERSATIONS, store.partitions(CONVERSATIONS.name), columns)
