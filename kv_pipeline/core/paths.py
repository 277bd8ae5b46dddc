"""Block paths: which blocks each request's prompt consists of, as small integers instead of hashes.

Stored requests hold only their new blocks and a reference to the earlier request with the longest shared prefix.
New blocks of a conversation are numbered 0, 1, 2 … in the order they are stored, so a path is an array of numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BlockNumbers = npt.NDArray[np.int64]
BlockIds = npt.NDArray[np.uint64]


def block_paths(
    prefix_requests: Sequence[int], shared_blocks: Sequence[int], n_new_blocks: Sequence[int]
) -> Iterator[BlockNumbers]:
    """Rebuild every request's blocks from the stored references, one at a time.

    Only paths that a later request refers to are kept meanwhile.

    Args:
        prefix_requests: Per request the number of the earlier request it shares its prefix with, -1 for none.
        shared_blocks: Per request the length of that prefix in blocks.
        n_new_blocks: Per request the number of blocks stored with it.

    Yields:
        Per request its block numbers in prompt order, shape (shared + new,).
    """
    n_references = Counter(prefix_requests)
    kept: dict[int, BlockNumbers] = {}
    first_new = 0
    for index, (prefix, shared, n_new) in enumerate(zip(prefix_requests, shared_blocks, n_new_blocks, strict=True)):
        path = np.arange(first_new, first_new + n_new, dtype=np.int64)
        first_new += n_new
        if prefix in kept:
            path = np.concatenate([kept[prefix][:shared], path])
            n_references[prefix] -= 1
            if not n_references[prefix]:
                del kept[prefix]
        if n_references[index]:
            kept[index] = path
        yield path


def shared_prefix_blocks(path: BlockNumbers, other: BlockNumbers) -> int:
    """Length in blocks of the common prefix of two paths of one conversation."""
    n = min(len(path), len(other))
    differs = np.flatnonzero(path[:n] != other[:n])
    return int(differs[0]) if len(differs) else n


def shared_by_references(request: int, other: int, prefix_requests: Sequence[int], shared_blocks: Sequence[int]) -> int:
    """Length in blocks of the common prefix of two different requests, from the stored references alone.

    The later of the two goes on from the request that it refers to, with blocks that nobody before it had: it shares
    with the other what that request does, and at most what it has of that request.

    Args:
        request: Number of one.
        other: Number of the other.
        prefix_requests: As for `block_paths`.
        shared_blocks: As for `block_paths`.
    """
    shared = shared_blocks[max(request, other)]
    while request != other and shared:
        earlier, later = sorted((request, other))
        shared = min(shared, shared_blocks[later])
        request, other = earlier, prefix_requests[later]
    return shared


class PrefixReferences(NamedTuple):
    """Paths as they are stored: new blocks and a reference to the earlier path with the longest shared prefix.

    Attributes:
        prefix_requests: Shape (paths,): number of the earlier path, -1 for none.
        shared_blocks: Shape (paths,): length of that prefix in blocks.
        n_new_blocks: Shape (paths,): number of blocks that no earlier path had.
        new_blocks: Shape (sum of n_new_blocks,): the new blocks' ids, path after path.
    """

    prefix_requests: npt.NDArray[np.int64]
    shared_blocks: npt.NDArray[np.int64]
    n_new_blocks: npt.NDArray[np.int64]
    new_blocks: BlockIds


def prefix_references(paths: Sequence[BlockIds]) -> PrefixReferences:
    """The opposite of `block_paths`.

    Args:
        paths: Block ids of each request. Equal ids have to mean equal prefixes.

    Raises:
        ValueError: They don't: an id stands behind different blocks, or comes twice in a path.
    """
    numbers, n_numbers = _dense(paths)
    last_user = np.full(n_numbers, -1, dtype=np.int32)
    rows: list[tuple[int, int, int]] = []
    new: list[BlockIds] = [np.empty(0, dtype=np.uint64)]
    for index, path in enumerate(numbers):
        users = last_user[path]
        shared = int(np.count_nonzero(users >= 0))
        prefix = int(users[shared - 1]) if shared else -1
        is_chained = users[shared:].max(initial=-1) < 0 and len(np.unique(path[shared:])) == len(path) - shared
        if not is_chained or (shared and not np.array_equal(path[:shared], numbers[prefix][:shared])):
            raise ValueError(f"Path {index} has a block that stood behind other blocks before.")
        last_user[path] = index
        rows.append((prefix, shared, len(path) - shared))
        new.append(paths[index][shared:])
    prefixes, shared_blocks, n_new_blocks = np.array(rows, dtype=np.int64).reshape(-1, 3).T.copy()
    return PrefixReferences(prefixes, shared_blocks, n_new_blocks, np.concatenate(new))


def _dense(paths: Sequence[BlockIds]) -> tuple[list[BlockNumbers], int]:
    """Ids as numbers below a limit that is not far above how many there are."""
    n_ids = sum(map(len, paths))
    highest = max((int(path.max(initial=0)) for path in paths), default=0)
    if highest <= 4 * n_ids:
        return [path.astype(np.int64) for path in paths], highest + 1
    distinct, numbers = np.unique(np.concatenate(paths), return_inverse=True)
    return np.split(numbers, np.cumsum([len(path) for path in paths])[:-1]), len(distinct)


def chained_ids(paths: Sequence[BlockIds]) -> list[BlockIds]:
    """Ids that mean equal prefixes, for ids that may not: a block is known by its id and the block before it."""
    known: dict[tuple[int, int], int] = {}
    chained = []
    for path in paths:
        block = 0
        chain = [block := known.setdefault((block, own), len(known) + 1) for own in path.tolist()]
        chained.append(np.array(chain, dtype=np.uint64))
    return chained
