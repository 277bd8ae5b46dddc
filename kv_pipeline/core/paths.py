"""Block paths: which blocks each request's prompt consists of, as small integers instead of hashes.

Stored requests hold only their new blocks and a reference to the earlier request with the longest shared prefix.
New blocks of a conversation are numbered 0, 1, 2 … in the order they are stored, so a path is an array of numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

BlockNumbers = npt.NDArray[np.int64]


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
