"""One conversation's requests, tokenised and hashed."""

from __future__ import annotations

import polars as pl

from kv_pipeline.core.blocks import BlockTree, RequestBlocks
from kv_pipeline.core.hashing import hashes_to_u64
from kv_pipeline.core.paths import BlockNumbers, block_paths, shared_prefix_blocks
from kv_pipeline.core.sections import SectionTokenizer
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS
from kv_pipeline.schemas.columns import hash_lists, polars_schema
from kv_pipeline.steps.segments import LoadedSegments


def tokenize_conversation(
    salt: bytes, block_size: int, tokenizer: SectionTokenizer, segments: LoadedSegments, requests: pl.DataFrame
) -> pl.DataFrame:
    """Frame of TOKENIZED_BLOCKS from one conversation's requests in order.

    Args:
        salt: Secret of the store.
        block_size: Tokens a block.
        tokenizer: Of these segments; conversations may share it.
        segments: At least the segments of the requests.
        requests: With identity columns, model, time, `database_id` and the segment columns.
    """
    tree = BlockTree(salt, block_size, tokenizer)
    columns = ["database_id", "tools_segment", "system_segment", "message_segments"]
    in_segments = [segments.of_request(*row) for row in requests[columns].iter_rows()]
    blocks = [tree.add(request) for request in in_segments]
    counts = {name: [getattr(b, name) for b in blocks] for name in ("tools_tokens", "system_tokens", "messages_tokens")}
    return requests.with_columns(
        **{name: pl.Series(values, dtype=pl.UInt32) for name, values in counts.items()},
        estimated_tokens=pl.Series([segments.estimated_tokens(r) for r in in_segments], dtype=pl.UInt32),
        n_blocks=pl.Series([b.n_blocks for b in blocks], dtype=pl.UInt32),
        prefix_request_index=pl.Series([b.prefix_request for b in blocks], dtype=pl.Int64),
        shared_blocks=pl.Series([b.shared_blocks for b in blocks], dtype=pl.UInt32),
        agent_shared_blocks=pl.Series(_agent_shared(requests["agent_id"].to_list(), blocks), dtype=pl.UInt32),
        new_block_hashes=hash_lists([hashes_to_u64(b.new_hashes) for b in blocks]),
        tail_hash=pl.Series([_u64(b.tail_hash) for b in blocks], dtype=pl.UInt64),
    ).select(polars_schema(TOKENIZED_BLOCKS).names())  # fmt: skip


def _u64(digest: bytes | None) -> int | None:
    return None if digest is None else int.from_bytes(digest, "little")


def _agent_shared(agents: list[str], blocks: list[RequestBlocks]) -> list[int]:
    """Blocks that each request shares with its agent's request before."""
    paths = block_paths(
        [b.prefix_request for b in blocks],
        [b.shared_blocks for b in blocks],
        [len(b.new_hashes) for b in blocks],
    )
    latest: dict[str, BlockNumbers] = {}
    shared = []
    for agent, path in zip(agents, paths, strict=True):
        shared.append(shared_prefix_blocks(latest[agent], path) if agent in latest else 0)
        latest[agent] = path
    return shared
