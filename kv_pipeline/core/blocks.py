"""Block hashes of a conversation's requests, each block hashed once.

The requests of a conversation form a tree of token runs: requests that begin with the same runs share the path from
the root. A node remembers the chain hash and the tokens of the block that its run left unfinished, so a request only
pays for the runs that nobody before it had.
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

from kv_pipeline.core.hashing import ROOT_PARENT_HASH, TOKEN_BYTES, block_hash, chain_block_hashes, token_bytes
from kv_pipeline.core.sections import Key, Piece, RequestSegments, SectionTokenizer, section_run

NO_REQUEST: Final = -1


class _Node:
    """The state of the hash chain after a run of tokens.

    Where messages begin, a node knows its trunk: the messages of the latest request from there, except the last piece,
    and the node they lead to. The next request nearly always goes on from it.
    """

    __slots__ = ("after_piece", "children", "hashes", "n_blocks", "n_tokens", "parent_hash", "trunk", "unfinished")

    def __init__(self, hashes: list[bytes], parent_hash: bytes, n_blocks: int, unfinished: bytes) -> None:
        self.children: dict[Key, _Node] = {}
        self.after_piece: dict[Piece, _Node] = {}
        self.hashes = hashes
        self.parent_hash = parent_hash
        self.n_blocks = n_blocks
        self.unfinished = unfinished
        self.n_tokens = 0
        self.trunk: tuple[tuple[int, ...], _Node] | None = None


class _Walk:
    """A request on its way down the tree: where it is, the last node that was there before it, and what it added."""

    __slots__ = ("added", "node", "shared")

    def __init__(self, root: _Node) -> None:
        self.node = root
        self.shared = root
        self.added: list[bytes] = []


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
        tail_hash: Hash of the tokens behind the last full block, chained like a block's; None if there are none.
    """

    tools_tokens: int
    system_tokens: int
    messages_tokens: int
    n_blocks: int
    prefix_request: int
    shared_blocks: int
    new_hashes: list[bytes]
    tail_hash: bytes | None


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
        self._root = _Node([], ROOT_PARENT_HASH, 0, b"")
        self._first_request: dict[bytes, int] = {}
        self._n_requests = 0

    def add(self, request: RequestSegments) -> RequestBlocks:
        """Count and hash a request's prompt."""
        walk = _Walk(self._root)
        section_ends = [0]
        for number in (request.tools, request.system):
            if number is not None:
                self._follow(walk, section_run(number))
            section_ends.append(walk.node.n_tokens)
        for run in self._tokenizer.opening(request.messages):
            self._follow(walk, run)
        self._follow_messages(walk, request.messages)
        section_ends.append(walk.node.n_tokens)
        return self._record(section_ends, walk)

    def _follow_messages(self, walk: _Walk, messages: tuple[int, ...]) -> None:
        start = walk.node
        pieces = self._tokenizer.pieces(messages[self._follow_trunk(walk, messages) :])
        for piece in pieces[:-1]:
            shortcut = walk.node.after_piece.get(piece)
            if shortcut is None:
                self._follow_piece(walk, piece, is_last=False)
            else:
                walk.node = walk.shared = shortcut
        for piece in pieces[-1:]:
            start.trunk = messages[: -len(piece)], walk.node
            self._follow_piece(walk, piece, is_last=True)

    def _follow_trunk(self, walk: _Walk, messages: tuple[int, ...]) -> int:
        """Over the whole trunk at once, if the messages go on from it; returns how many messages that were."""
        trunk, end = walk.node.trunk or ((), walk.node)
        n_known = len(trunk)
        if not trunk or messages[:n_known] != trunk or not self._tokenizer.begins_piece(messages[n_known:]):
            return 0
        walk.node = walk.shared = end
        return n_known

    def _follow_piece(self, walk: _Walk, piece: Piece, *, is_last: bool) -> None:
        """Over both runs of a piece; a shortcut remembers where a piece in the middle leads."""
        start = walk.node
        for run in self._tokenizer.piece_runs(piece, is_last=is_last):
            self._follow(walk, run)
        if not is_last:
            start.after_piece[piece] = walk.node

    def _follow(self, walk: _Walk, run: Key) -> None:
        child = walk.node.children.get(run)
        if child is None:
            child = self._extend(walk.node, run)
            walk.added += child.hashes
        else:
            walk.shared = child
        walk.node = child

    def _extend(self, node: _Node, key: Key) -> _Node:
        tokens = self._tokenizer.tokens(key)
        pending = node.unfinished + token_bytes(tokens)
        hashes, parent = chain_block_hashes(self._salt, node.parent_hash, pending, self._block_size)
        unfinished = pending[len(hashes) * TOKEN_BYTES * self._block_size :]
        child = node.children[key] = _Node(hashes, parent, node.n_blocks + len(hashes), unfinished)
        child.n_tokens = node.n_tokens + len(tokens)
        return child

    def _record(self, section_ends: list[int], walk: _Walk) -> RequestBlocks:
        """Number the request, and find how far the added blocks were there under other run boundaries."""
        n_seen = 0
        while n_seen < len(walk.added) and walk.added[n_seen] in self._first_request:
            n_seen += 1
        new = walk.added[n_seen:]
        last_shared = walk.added[n_seen - 1] if n_seen else walk.shared.parent_hash
        prefix_request = self._first_request.get(last_shared, NO_REQUEST)
        self._first_request.update(dict.fromkeys(new, self._n_requests))
        self._n_requests += 1
        tools, system, messages = (end - start for start, end in itertools.pairwise(section_ends))
        n_blocks = walk.node.n_blocks
        tail = self._tail_hash(walk.node)
        return RequestBlocks(tools, system, messages, n_blocks, prefix_request, n_blocks - len(new), new, tail)

    def _tail_hash(self, node: _Node) -> bytes | None:
        """Never that of a full block: both hash all their tokens, and a tail has fewer."""
        return block_hash(self._salt, node.parent_hash, node.unfinished) if node.unfinished else None
