"""Block hashes of a conversation's requests, each block hashed once.

The requests of a conversation form a tree of token runs: requests that begin with the same runs share the path from
the root. A node remembers the chain hash and the tokens of the block that its run left unfinished, so a request only
pays for the runs that nobody before it had.
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import numpy as np

from kv_pipeline.core.hashing import ROOT_PARENT_HASH, TokenIds, chain_block_hashes
from kv_pipeline.core.sections import Key, RequestSegments, SectionTokenizer

NO_REQUEST: Final = -1


class _Node:
    """The state of the hash chain after a run of tokens."""

    __slots__ = ("children", "hashes", "n_blocks", "n_tokens", "parent_hash", "unfinished")

    def __init__(self, hashes: list[bytes], parent_hash: bytes, n_blocks: int, unfinished: TokenIds) -> None:
        self.children: dict[Key, _Node] = {}
        self.hashes = hashes
        self.parent_hash = parent_hash
        self.n_blocks = n_blocks
        self.unfinished = unfinished
        self.n_tokens = 0


class RequestBlocks(NamedTuple):
    """One request's prompt in tokens and blocks.

    Attributes:
        tools_tokens: Tokens of the tools section.
        system_tokens: Tokens of the system section.
        messages_tokens: Tokens of the messages section.
        n_blocks: Full blocks of the whole prompt.
        prefix_request: Number of the earlier request with the longest shared prefix, `NO_REQUEST` if none.
        shared_blocks: Blocks shared with it.
        new_hashes: Hashes of the n_blocks - shared_blocks blocks that no earlier request of the tree had.
    """

    tools_tokens: int
    system_tokens: int
    messages_tokens: int
    n_blocks: int
    prefix_request: int
    shared_blocks: int
    new_hashes: list[bytes]


class BlockTree:
    """Hashes requests one after the other; requests are numbered from 0 in the order they come.

    Args:
        salt: Secret of the store.
        block_size: Tokens a block.
        tokenizer: Gives the requests' token runs.
    """

    def __init__(self, salt: bytes, block_size: int, tokenizer: SectionTokenizer) -> None:
        self._salt = salt
        self._block_size = block_size
        self._tokenizer = tokenizer
        self._root = _Node([], ROOT_PARENT_HASH, 0, np.empty(0, dtype=np.uint32))
        self._first_request: dict[bytes, int] = {}
        self._n_requests = 0

    def add(self, request: RequestSegments) -> RequestBlocks:
        """Count and hash a request's prompt."""
        node, last_shared, added = self._root, self._root, list[bytes]()
        section_ends = [0]
        for section in self._tokenizer.runs(request):
            for key in section:
                child = node.children.get(key)
                if child is None:
                    child = self._extend(node, key)
                    added += child.hashes
                else:
                    last_shared = child
                node = child
            section_ends.append(node.n_tokens)
        return self._record(section_ends, node.n_blocks, last_shared.parent_hash, added)

    def _extend(self, node: _Node, key: Key) -> _Node:
        tokens = self._tokenizer.tokens(key)
        pending = np.concatenate([node.unfinished, tokens]) if len(node.unfinished) else tokens
        hashes, parent = chain_block_hashes(self._salt, node.parent_hash, pending, self._block_size)
        unfinished = pending[len(hashes) * self._block_size :].copy()
        child = node.children[key] = _Node(hashes, parent, node.n_blocks + len(hashes), unfinished)
        child.n_tokens = node.n_tokens + len(tokens)
        return child

    def _record(self, section_ends: list[int], n_blocks: int, shared: bytes, added: list[bytes]) -> RequestBlocks:
        """Number the request, and find how far the added blocks were there under other run boundaries."""
        n_seen = 0
        while n_seen < len(added) and added[n_seen] in self._first_request:
            n_seen += 1
        new = added[n_seen:]
        shared = added[n_seen - 1] if n_seen else shared
        prefix_request = self._first_request.get(shared, NO_REQUEST)
        self._first_request.update(dict.fromkeys(new, self._n_requests))
        self._n_requests += 1
        tools, system, messages = (end - start for start, end in itertools.pairwise(section_ends))
        return RequestBlocks(tools, system, messages, n_blocks, prefix_request, n_blocks - len(new), new)
