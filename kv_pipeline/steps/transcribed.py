"""Requests of answers that no recording holds: rebuilt from the user's transcripts, or put together from them.

They are rows of a partition of their own beside those of databases and logs. It is made with the user's index, since
only there is known which answers are missing; where none is, transcripts are not read for content at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Final

import polars as pl

from kv_pipeline.core.conversations import owners
from kv_pipeline.errors import Skip
from kv_pipeline.landing import TranscriptFile
from kv_pipeline.schemas.explanations import CONTENT_BLOCKS
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS, SEGMENTS
from kv_pipeline.sources.transcript_requests.drafts import Wanted
from kv_pipeline.sources.transcript_requests.reader import SessionFile, TranscriptRequestReader
from kv_pipeline.sources.transcripts.frames import TranscriptFrames
from kv_pipeline.sources.transcripts.reader import MAIN_AGENT, Transcript
from kv_pipeline.steps.databases import CONTENT_STATE, MESSAGE_INDEX_STATE, content_digest, index_database
from kv_pipeline.steps.prompts import CONTENT_BLOCKS_STATE
from kv_pipeline.store import Store

TRANSCRIBED_MODELS: Final = (RAW_REQUESTS, SEGMENTS, MESSAGE_INDEX)
_SEGMENT: Final = ["segment_index", "segment_id"]
_SECTIONS: Final = ("tools_segment", "system_segment")


def transcribed_partition(user_id: str) -> str:
    """Partition of a user's requests that were made from transcripts; no file's name gives one with a tilde first."""
    return f"{user_id}/~transcripts"


def write_transcribed(
    store: Store,
    user_id: str,
    recorded: pl.DataFrame,
    files: Sequence[TranscriptFile],
    read: Sequence[Transcript],
    transcribed: TranscriptFrames,
) -> list[Skip]:
    """Write the requests of answers that no recording holds; nothing if there are none.

    A session that a recording holds in part gets only requests that can be verified: stand-ins among recorded requests
    would look like lost caches.

    Args:
        store: The store.
        user_id: The user.
        recorded: RAW_REQUESTS of the user's databases and logs.
        files: The user's transcripts.
        read: What each of them says.
        transcribed: What all of them say, and those that are gone.
    """
    key = transcribed_partition(user_id)
    is_recorded = pl.col("message_id").is_in(recorded["message_id"].drop_nulls().implode())
    is_missing = ~is_recorded & ~_is_recovered(read)
    if transcribed.answers.filter(is_missing).is_empty():
        _remove(store, key)
        return []
    owned = owners(transcribed.answers, transcribed.agents)
    missing = owned.filter(is_missing)
    begun = set(owned.filter(is_recorded)["session_id"])
    wanted = _wanted(missing, transcribed.agents, begun)
    sessions = _sessions(files, read, set(missing["session_id"]), transcribed.agents)
    return _write(store, key, wanted, sessions)


def _is_recovered(read: Sequence[Transcript]) -> pl.Expr:
    """Whether an answer stands in recovered transcripts alone, which have nothing to make a request of."""
    own, recovered = (
        {answer.message_id for transcript in read if transcript.is_recovered is kind for answer in transcript.answers}
        for kind in (False, True)
    )
    return pl.col("message_id").is_in(sorted(recovered - own))


def is_whole(store: Store, user_id: str) -> bool:
    """Whether the tables of a user's transcribed requests are there, if there should be any."""
    key = transcribed_partition(user_id)
    is_there = all(store.has(model.name, key) for model in TRANSCRIBED_MODELS)
    return is_there or key not in store.state(CONTENT_STATE)


def _remove(store: Store, key: str) -> None:
    if key in store.state(CONTENT_STATE):
        for model in (*TRANSCRIBED_MODELS, CONTENT_BLOCKS):
            store.remove(model.name, key)
        for state in (CONTENT_STATE, MESSAGE_INDEX_STATE, CONTENT_BLOCKS_STATE):
            store.update_state(state, {}, removed=[key])


def _wanted(missing: pl.DataFrame, agents: pl.DataFrame, begun: set[str]) -> dict[str, Wanted]:
    types = _agent_types(agents)
    columns = missing.select("message_id", "session_id", "agent_id")
    return {
        message_id: Wanted(session, agent, types.get((session, agent), MAIN_AGENT), session not in begun)
        for message_id, session, agent in columns.iter_rows()
    }


def _agent_types(agents: pl.DataFrame) -> dict[tuple[str, str], str]:
    """What decides an agent's tools and system prompt; a fork has those of the agent that it continues."""
    columns = ["session_id", "agent_id", "parent_agent_id", "subagent_type", "is_fork"]
    types: dict[tuple[str, str], str] = {}
    for session, agent, parent, kind, is_fork in agents.sort("depth").select(columns).iter_rows():
        of_parent = types.get((session, parent), MAIN_AGENT)
        own = MAIN_AGENT if agent == MAIN_AGENT else kind or "agent"
        types[session, agent] = of_parent if is_fork else own
    return types


def _sessions(
    files: Sequence[TranscriptFile], read: Sequence[Transcript], wanted: set[str], agents: pl.DataFrame
) -> list[tuple[str, list[SessionFile]]]:
    """Files by session: the main thread, its agents, then forks, which continue one of those."""
    columns = agents.select("session_id", "agent_id", "is_fork", "depth")
    order = {(session, agent): (is_fork, depth) for session, agent, is_fork, depth in columns.iter_rows()}
    sessions: dict[str, list[tuple[tuple[bool, int, str], SessionFile]]] = {}
    for file, transcript in zip(files, read, strict=True):
        agent = _agent_of(transcript)
        if agent is not None and agent[0] in wanted and not transcript.is_recovered:
            place = (*order.get(agent, (False, 0)), file.source)
            told = frozenset(skip.row for skip in transcript.skips if skip.is_left_out)
            sessions.setdefault(agent[0], []).append((place, SessionFile(file.source, file.path, told)))
    return [(key, [file for _, file in sorted(sessions[key], key=itemgetter(0))]) for key in sorted(sessions)]


def _agent_of(transcript: Transcript) -> tuple[str, str] | None:
    """Session and agent that a file is of; None without an answer."""
    if transcript.agents:
        return transcript.agents[0].session_id, transcript.agents[0].agent_id
    return (transcript.answers[0].session_id, MAIN_AGENT) if transcript.answers else None


def _write(
    store: Store, key: str, wanted: Mapping[str, Wanted], sessions: Iterable[tuple[str, list[SessionFile]]]
) -> list[Skip]:
    earlier, earlier_segments = store.read(RAW_REQUESTS, [key]), store.read(SEGMENTS, [key])
    numbers: list[pl.DataFrame] = []
    with store.write_stream(SEGMENTS, key) as append:

        def emit(segments: pl.DataFrame) -> None:
            numbers.append(segments.select(_SEGMENT))
            append(segments)

        reader = TranscriptRequestReader(key, store.salt, store.settings.keep_billing_header, emit, wanted)
        found = reader.read(sessions)
        kept = earlier.filter(pl.col("message_id").is_in(list(wanted))).join(found.requests, on="row_id", how="anti")
        known = pl.concat([pl.DataFrame(schema=earlier_segments.select(_SEGMENT).schema), *numbers])
        kept, segments = _renumbered(kept, earlier_segments, known)
        if segments.height:
            append(segments)
    requests = pl.concat([found.requests, kept]).sort("row_id")
    store.write(RAW_REQUESTS, key, requests)
    store.update_state(CONTENT_STATE, {key: content_digest(requests)})
    index_database(store, key)
    return found.skips


def _renumbered(
    requests: pl.DataFrame, segments: pl.DataFrame, known: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Requests of an earlier reading, whose transcripts are gone, in the numbers of the new reading.

    Returns:
        The requests, and their segments that the new reading does not have.
    """
    used = pl.concat(
        [requests["message_segments"].explode(), requests["tools_segment"], requests["system_segment"]]
    ).drop_nulls().unique()  # fmt: skip
    needed = segments.filter(pl.col("segment_index").is_in(used.implode())).rename({"segment_index": "was"})
    added = needed.join(known, on="segment_id", how="anti").sort("was")
    added = added.with_columns(segment_index=(pl.int_range(pl.len()) + known.height).cast(pl.UInt32))
    both = pl.concat([known, added.select(_SEGMENT)]).join(needed.select("was", "segment_id"), on="segment_id")
    number = dict(both.select("was", "segment_index").iter_rows())
    renumber = pl.element().replace_strict(number, return_dtype=pl.UInt32, default=None)
    return requests.with_columns(
        pl.col("message_segments").list.eval(renumber),
        *(pl.col(name).replace_strict(number, return_dtype=pl.UInt32, default=None) for name in _SECTIONS),
    ), added.select(segments.columns)
