"""The fleet roll-up: sums of every conversation, and the scopes that conversations share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import polars as pl

from kv_pipeline import memory, token_process
from kv_pipeline.core.validation import report_rows, shared_hits, summarise
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS, VALIDATION_REPORT, VALIDATION_SUMMARY
from kv_pipeline.steps.explain import explain_user, stale_reports
from kv_pipeline.steps.index import user_databases
from kv_pipeline.steps.prompts import describe_segments
from kv_pipeline.store import Store

FLEET: Final = "fleet"
ROWS_AT_A_TIME: Final = 200_000
"""Rows of hits that are summed at a time."""
_REQUEST: Final = ["conversation_id", "request_index"]


def roll_up(store: Store) -> pl.DataFrame:
    """Write and return VALIDATION_SUMMARY of everything in the store, and the cache_report of users that changed."""
    stale = stale_reports(store)
    for database_id in [key for user_id in stale for key in user_databases(store, user_id)]:
        describe_segments(store, database_id)
    token_process.let_go()  # all that is to be tokenised was, and explaining takes much memory
    memory.give_back()
    for user_id in stale:
        explain_user(store, user_id)
    memory.give_back()
    keys = store.partitions(VALIDATION_REPORT.name)
    summary = pl.concat(_summaries(store, keys)).sort(VALIDATION_SUMMARY.unique)
    fingerprint = roll_up_fingerprint(store)
    store.write(VALIDATION_SUMMARY, FLEET, summary)
    store.update_state(VALIDATION_SUMMARY.name, {FLEET: fingerprint})
    return summary


def roll_up_fingerprint(store: Store) -> str:
    """Fingerprint of what the roll-up is made of: every conversation's validation_report."""
    return hashlib.blake2b(
        repr(sorted(store.state(VALIDATION_REPORT.name).items())).encode(), digest_size=16
    ).hexdigest()


def _summaries(store: Store, keys: list[str]) -> Iterator[pl.DataFrame]:
    """Sums of each scope; rows of one at a time, as they are many."""
    block_size = store.settings.block_size
    report = store.read(VALIDATION_REPORT, keys)
    yield summarise(report, block_size)
    requests = report.unique(_REQUEST, keep="first", maintain_order=True).drop(
        "scope", "lifetime", "hit_blocks", "hit_tokens"
    )
    del report
    by_conversation = {
        str(key): frame
        for (key,), frame in store.read(TOKENIZED_BLOCKS, keys).group_by("conversation_id", maintain_order=True)
    }
    for hits in _gathered(_shared(by_conversation)):
        yield summarise(report_rows(requests, hits, block_size), block_size)


def _gathered(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Frames put together until they have many rows: users are many, and most have few."""
    held: list[pl.DataFrame] = []
    n_rows = 0
    for frame in frames:
        if frame.height:
            held.append(frame)
            n_rows += frame.height
        if n_rows > ROWS_AT_A_TIME:
            yield pl.concat(held)
            held, n_rows = [], 0
    if held:
        yield pl.concat(held)


def _shared(by_conversation: dict[str, pl.DataFrame]) -> Iterator[pl.DataFrame]:
    by_user: dict[str, list[pl.DataFrame]] = {}
    for key, frame in by_conversation.items():
        by_user.setdefault(key.partition("/")[0], []).append(frame)
    for frames in by_user.values():
        yield shared_hits(frames, "user")
    yield shared_hits(by_conversation.values(), "fleet")
