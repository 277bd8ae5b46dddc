"""conversation_index: one user's transcripts joined with the user's databases."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import polars as pl

from kv_pipeline.core.conversations import ConversationIndex, index_conversations
from kv_pipeline.landing import UserTranscripts
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS
from kv_pipeline.sources.transcripts.frames import transcript_frames
from kv_pipeline.sources.transcripts.reader import read_transcript
from kv_pipeline.steps.databases import CONTENT_STATE, MESSAGE_INDEX_STATE, write_skips
from kv_pipeline.steps.versions import CONVERSATION_INDEX_VERSION
from kv_pipeline.store import Store, safe_name

INDEX_STATE: Final = "conversation_index"
INDEX_MODELS: Final = (CONVERSATION_REQUESTS, AGENTS, UNINDEXED_REQUESTS, CONVERSATIONS)


class IndexedUser(NamedTuple):
    """What indexing a user gave."""

    tables: ConversationIndex
    n_skipped: int


def transcripts_partition(user_id: str) -> str:
    """Partition of skipped_input that a user's transcripts have."""
    return f"{user_id}/transcripts of the user"


def user_databases(store: Store, user_id: str) -> list[str]:
    """Databases of a user that the store holds."""
    return [key for key in store.state(CONTENT_STATE) if key.partition("/")[0] == user_id]


def user_fingerprint(store: Store, user_id: str, transcripts: UserTranscripts) -> str:
    """Fingerprint of the inputs of a user's index: transcripts, and what the user's databases say."""
    content, indexed = store.state(CONTENT_STATE), store.state(MESSAGE_INDEX_STATE)
    databases = [(key, content[key], indexed.get(key)) for key in user_databases(store, user_id)]
    digest = hashlib.blake2b(repr((transcripts.fingerprint, databases)).encode(), digest_size=16)
    return f"{CONVERSATION_INDEX_VERSION}-{digest.hexdigest()}"


def index_user(store: Store, user_id: str, transcripts: UserTranscripts) -> IndexedUser:
    """Write a user's conversation_index."""
    fingerprint = user_fingerprint(store, user_id, transcripts)
    read = [read_transcript(file.path, file.source) for file in transcripts.files]
    databases = user_databases(store, user_id)
    index = index_conversations(
        user_id,
        store.read(RAW_REQUESTS, databases),
        store.read(MESSAGE_INDEX, databases),
        *map(_with_safe_sessions, transcript_frames(read)),
    )
    for model, frame in zip(INDEX_MODELS, index, strict=True):
        store.write(model, user_id, frame)
    skips = [skip for transcript in read for skip in transcript.skips]
    write_skips(store, transcripts_partition(user_id), skips)
    store.update_state(INDEX_STATE, {user_id: fingerprint})
    return IndexedUser(index, sum(skip.is_left_out for skip in skips))


def _with_safe_sessions(frame: pl.DataFrame) -> pl.DataFrame:
    """Sessions become partition keys, and whoever wrote the transcripts named them."""
    safe = frame.select(pl.col("session_id").unique()).with_columns(
        safe_id=pl.col("session_id").map_elements(safe_name, return_dtype=pl.String)
    )
    return (
        frame.join(safe, on="session_id", maintain_order="left")
        .with_columns(session_id="safe_id")
        .select(frame.columns)
    )


def conversations(store: Store) -> pl.DataFrame:
    """CONVERSATIONS of all users."""
    return store.read(CONVERSATIONS, store.partitions(CONVERSATIONS.name))
