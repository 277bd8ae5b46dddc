"""The blocks of conversations in the one form that reuse is measured from, whether they come from a store or a trace.

A conversation alone is a group of caches, one a model. A fleet is another: there the requests of all conversations are
interleaved by time, and a block that two conversations have is one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from kv_pipeline.core.paths import BlockIds, BlockNumbers, block_paths
from kv_pipeline.core.reuse import Floats, Ints, Reuse, measure_reuse
from kv_pipeline.core.reuse_curves import PREFILL_LIFETIMES_S
from kv_pipeline.core.simulate import Use


@dataclass(frozen=True, slots=True)
class ConversationBlocks:
    """The requests of one conversation, sub-agents included, in order of time.

    Attributes:
        conversation_id: The conversation, or the trace.
        block_size: Tokens a block.
        starts_at_s: What to add to `times_s` for the clock that conversations share; None if that is not known.
        times_s: Shape (requests,), ascending.
        models: Model of each request.
        agent_ids: Agent of each request.
        prompt_tokens: Shape (requests,): tokens of each prompt, the partial block included.
        prefix_requests: Shape (requests,): earlier request with the longest shared prefix, -1 for none.
        shared_blocks: Shape (requests,): length of that prefix.
        agent_shared_blocks: Shape (requests,): blocks shared with the agent's request before.
        n_new_blocks: Shape (requests,): blocks that no earlier request of the conversation had.
        new_blocks: Shape (sum of n_new_blocks,): their ids, request after request.
        has_own_ids: Whether ids mean nothing outside this conversation.
    """

    conversation_id: str
    block_size: int
    starts_at_s: float | None
    times_s: Floats
    models: Sequence[str]
    agent_ids: Sequence[str]
    prompt_tokens: Ints
    prefix_requests: Ints
    shared_blocks: Ints
    agent_shared_blocks: Ints
    n_new_blocks: Ints
    new_blocks: BlockIds
    has_own_ids: bool

    @property
    def n_blocks(self) -> Ints:
        """Shape (requests,): full blocks of each prompt."""
        return self.shared_blocks + self.n_new_blocks

    def paths(self) -> Iterator[BlockNumbers]:
        """Per request its blocks as indices of `new_blocks`."""
        return block_paths(self.prefix_requests.tolist(), self.shared_blocks.tolist(), self.n_new_blocks.tolist())


def stored_conversation(blocks: pl.DataFrame, block_size: int) -> ConversationBlocks:
    """The blocks of one conversation of a store.

    Args:
        blocks: Its TOKENIZED_BLOCKS in order.
        block_size: Tokens a block.
    """
    tokens = pl.sum_horizontal(pl.col("tools_tokens", "system_tokens", "messages_tokens").cast(pl.Int64))
    hashes = blocks["new_block_hashes"]
    return ConversationBlocks(
        conversation_id=str(blocks["conversation_id"][0]) if blocks.height else "",
        block_size=block_size,
        starts_at_s=0.0,
        times_s=blocks["requested_at_utc"].dt.timestamp("us").to_numpy() / 1e6,
        models=blocks["model"].to_list(),
        agent_ids=blocks["agent_id"].to_list(),
        prompt_tokens=blocks.select(tokens).to_series().to_numpy(),
        prefix_requests=blocks["prefix_request_index"].to_numpy(),
        shared_blocks=blocks["shared_blocks"].cast(pl.Int64).to_numpy(),
        agent_shared_blocks=blocks["agent_shared_blocks"].cast(pl.Int64).to_numpy(),
        n_new_blocks=hashes.list.len().cast(pl.Int64).to_numpy(),
        new_blocks=hashes.explode().drop_nulls().to_numpy(),
        has_own_ids=False,
    )


def conversation_reuse(
    conversation: ConversationBlocks, prefill_lifetimes_s: Sequence[float] = PREFILL_LIFETIMES_S
) -> Reuse:
    """Reuse within a conversation: one cache a model."""
    return measure_reuse(
        map(Use, conversation.models, conversation.times_s.tolist(), conversation.paths()),
        len(conversation.new_blocks),
        block_size=conversation.block_size,
        prompt_tokens=int(conversation.prompt_tokens.sum()),
        lifetimes_s=prefill_lifetimes_s,
    )


def fleet_reuse(
    conversations: Sequence[ConversationBlocks], prefill_lifetimes_s: Sequence[float] = PREFILL_LIFETIMES_S
) -> Reuse:
    """Reuse among conversations that share one cache a model.

    Args:
        conversations: All of one block size.
        prefill_lifetimes_s: Finite lifetimes for which to count how often each block was computed.
    """
    fleet = fleet_uses(conversations)
    return measure_reuse(
        fleet.uses,
        fleet.n_blocks,
        block_size=conversations[0].block_size if conversations else 0,
        prompt_tokens=sum(int(conversation.prompt_tokens.sum()) for conversation in conversations),
        lifetimes_s=prefill_lifetimes_s,
    )


class FleetUses(NamedTuple):
    """Requests of several conversations as caches see them.

    Attributes:
        uses: By time; at one time in the order of the conversations.
        n_blocks: Block numbers are below this.
        order: Shape (requests,): of each use its place among the requests, conversation after conversation.
    """

    uses: Iterator[Use]
    n_blocks: int
    order: Ints


def fleet_uses(conversations: Sequence[ConversationBlocks]) -> FleetUses:
    """Requests interleaved by the clock; if some conversation's clock is not known, as if all began at once."""
    numbers, n_blocks = _shared_numbers(conversations)
    times_s = _common_times_s(conversations)
    order = np.argsort(np.concatenate([np.empty(0), *times_s]), kind="stable")
    return FleetUses(_interleaved(conversations, numbers, times_s, order), n_blocks, order)


def _shared_numbers(conversations: Sequence[ConversationBlocks]) -> tuple[list[BlockNumbers], int]:
    """Per conversation the number of each of its new blocks in the fleet, and how many there are."""
    shared = [conversation.new_blocks for conversation in conversations if not conversation.has_own_ids]
    distinct, found = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *shared]), return_inverse=True)
    n_shared, n_blocks = 0, len(distinct)
    numbers: list[BlockNumbers] = []
    for conversation in conversations:
        n_new = len(conversation.new_blocks)
        if conversation.has_own_ids:
            numbers.append(np.arange(n_blocks, n_blocks + n_new, dtype=np.int64))
            n_blocks += n_new
        else:
            numbers.append(found[n_shared : n_shared + n_new])
            n_shared += n_new
    return numbers, n_blocks


def _common_times_s(conversations: Sequence[ConversationBlocks]) -> list[Floats]:
    starts_s = [conversation.starts_at_s for conversation in conversations]
    known = [start_s for start_s in starts_s if start_s is not None]
    offsets_s = known if len(known) == len(starts_s) else [0.0] * len(starts_s)
    return [conversation.times_s + start for conversation, start in zip(conversations, offsets_s, strict=True)]


def _interleaved(
    conversations: Sequence[ConversationBlocks], numbers: Sequence[BlockNumbers], times_s: list[Floats], order: Ints
) -> Iterator[Use]:
    owners = np.repeat(np.arange(len(conversations)), [len(times) for times in times_s])
    requests = [
        zip(c.models, times.tolist(), c.paths(), strict=True) for c, times in zip(conversations, times_s, strict=True)
    ]
    for owner in owners[order].tolist():
        model, time_s, path = next(requests[owner])
        yield Use(model, time_s, numbers[owner][path])
