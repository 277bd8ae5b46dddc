"""One conversation's requests, tokenised and hashed."""

from __future__ import annotations

import polars as pl

from kv_pipeline.core.blocks import BlockTree, RequestBlocks
from kv_pipeline.core.hashing import hashes_to_u64
from kv_pipeline.core.paths import shared_by_references
from kv_pipeline.core.sections import SectionTokenizer
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS
from kv_pipeline.schemas.columns import hash_lists, polars_schema, put_together
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
    counts = {
        "tools_tokens": [b.tools_tokens for b in blocks],
        "system_tokens": [b.system_tokens for b in blocks],
        "messages_tokens": [b.messages_tokens for b in blocks],
        "estimated_tokens": [segments.estimated_tokens(request) for request in in_segments],
        "n_blocks": [b.n_blocks for b in blocks],
        "shared_blocks": [b.shared_blocks for b in blocks],
        "agent_shared_blocks": _agent_shared(requests["agent_id"].to_list(), blocks),
    }
    made = [
        *[pl.Series(name, values, pl.UInt32) for name, values in counts.items()],
        pl.Series("prefix_request_index", [b.prefix_request for b in blocks], pl.Int64),
        hash_lists([hashes_to_u64(b.new_hashes) for b in blocks]).alias("new_block_hashes"),
        pl.Series("tail_hash", [_u64(b.tail_hash) for b in blocks], pl.UInt64),
    ]
    return put_together(polars_schema(TOKENIZED_BLOCKS), [*requests.get_columns(), *made])


def _u64(digest: bytes | None) -> int | None:
    return None if digest is None else int.from_bytes(digest, "little")


def _agent_shared(agents: list[str], blocks: list[RequestBlocks]) -> list[int]:
    """Blocks that each request shares with its agent's request before."""
    references = [b.prefix_request for b in blocks], [b.shared_blocks for b in blocks]
    latest: dict[str, int] = {}
    shared = []
    for number, agent in enumerate(agents):
        before = latest.get(agent)
        shared.append(0 if before is None else shared_by_references(number, before, *references))
        latest[agent] = number
    return shared
