"""Reuse beyond prefixes for what is in a store, computed from its content when asked for; nothing of it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl

from kv_pipeline.core.repeats import Prompt, prompt_tail, repeated_tokens
from kv_pipeline.core.sections import SectionTokenizer
from kv_pipeline.core.tokenizer import encoder
from kv_pipeline.core.validation import conversation_hits, shared_hits
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS
from kv_pipeline.steps.conversations import Progress, no_progress, user_requests
from kv_pipeline.steps.segments import load_segments
from kv_pipeline.store import Store

CONTENT_REUSE: Final = pl.Schema(
    {
        "conversation_id": pl.String(), "n_requests": pl.Int64(), "prompt_tokens": pl.Int64(),
        "prefix_hit_tokens": pl.Int64(), "repeated_tokens": pl.Int64(), "new_tokens": pl.Int64(),
    }
)  # fmt: skip
_REQUEST: Final = ["conversation_id", "request_index"]


def content_reuse(store: Store, scope: str = "conversation", progress: Progress = no_progress) -> pl.DataFrame:
    """How many tokens of each conversation an unbounded cache would hit as prefix, could find elsewhere, or never saw.

    Args:
        store: The store, with its segments.
        scope: Who shares a cache: `conversation` or `fleet`; models never do.
        progress: Told of every conversation.

    Returns:
        Columns of `CONTENT_REUSE`, a row per conversation; prompt tokens are the sum of the other three.

    Raises:
        StoreError: The content was purged.
    """
    keys = store.partitions(TOKENIZED_BLOCKS.name)
    if not keys:
        return pl.DataFrame(schema=CONTENT_REUSE)
    requests = _hit_requests(store, keys, scope)
    found = repeated_tokens(_prompts(store, keys, requests, scope, progress))
    tokens = requests.with_columns(repeated_tokens=pl.Series(found, dtype=pl.Int64)).group_by(
        "conversation_id", maintain_order=True
    )
    sums = tokens.agg(
        pl.len().cast(pl.Int64).alias("n_requests"),
        pl.col("prompt_tokens", "prefix_hit_tokens", "repeated_tokens").sum(),
    )
    new_tokens = pl.col("prompt_tokens") - pl.col("prefix_hit_tokens") - pl.col("repeated_tokens")
    return sums.with_columns(new_tokens=new_tokens).select(CONTENT_REUSE.names())


def _hit_requests(store: Store, keys: list[str], scope: str) -> pl.DataFrame:
    """Requests, conversation after conversation: model, prompt tokens, hit prefix, and place in time among all."""
    blocks = store.read(TOKENIZED_BLOCKS, keys)
    conversations = blocks.partition_by("conversation_id", maintain_order=True)
    hits = conversation_hits(blocks) if scope == "conversation" else shared_hits(conversations, scope)
    wanted = hits.filter(pl.col("scope") == scope, pl.col("lifetime") == "infinite")
    prompt_tokens = pl.sum_horizontal(pl.col("tools_tokens", "system_tokens", "messages_tokens").cast(pl.Int64))
    hit_tokens = pl.col("hit_blocks").cast(pl.Int64) * store.settings.block_size
    by_time = pl.struct("requested_at_utc", *_REQUEST).rank("ordinal").cast(pl.Int64)
    return blocks.join(wanted, on=_REQUEST, maintain_order="left").select(
        *_REQUEST, "model", prompt_tokens=prompt_tokens, prefix_hit_tokens=hit_tokens, order=by_time
    )


def _prompts(store: Store, keys: list[str], requests: pl.DataFrame, scope: str, progress: Progress) -> Iterator[Prompt]:
    hit_by_key = {str(key): frame for (key,), frame in requests.group_by("conversation_id", maintain_order=True)}
    encode = encoder()
    for key in keys:
        rows = user_requests(store, key.partition("/")[0], [key])
        segments = load_segments(store, rows)
        tokenizer = SectionTokenizer(encode, segments.contents)
        columns = rows.select("database_id", "tools_segment", "system_segment", "message_segments").iter_rows()
        facts = hit_by_key[key].select("model", "order", "prefix_hit_tokens").iter_rows()
        for in_segments, (model, order, n_hit_tokens) in zip(columns, facts, strict=True):
            runs = tokenizer.runs(segments.of_request(*in_segments))
            tokens = np.concatenate([tokenizer.tokens(run) for run in runs])
            cache = model if scope == "fleet" else (key, model)
            yield prompt_tail(cache, order, tokens, n_hit_tokens)
        progress(1)
