"""Block paths: which blocks each request's prompt consists of, as small integers instead of hashes.

Stored requests hold only their new blocks and a reference to the earlier request with the longest shared prefix.
New blocks of a conversation are numbered 0, 1, 2 … in the order they are stored, so a path is an array of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BlockNumbers = npt.NDArray[np.int64]


def block_paths(
    prefix_requests: Sequence[int], shared_blocks: Sequence[int], n_new_blocks: Sequence[int]
) -> list[BlockNumbers]:
    """Rebuild every request's blocks from the stored references.

    Args:
        prefix_requests: Per request the number of the earlier request it shares its prefix with, -1 for none.
        shared_blocks: Per request the length of that prefix in blocks.
        n_new_blocks: Per request the number of blocks stored with it.

    Returns:
        Per request an int64 array of block numbers, in prompt order.
    """
    paths: list[BlockNumbers] = []
    first_new = 0
    for prefix, shared, n_new in zip(prefix_requests, shared_blocks, n_new_blocks, strict=True):
        new = np.arange(first_new, first_new + n_new, dtype=np.int64)
        paths.append(np.concatenate([paths[prefix][:shared], new]) if shared else new)
        first_new += n_new
    return paths


def shared_prefix_blocks(path: BlockNumbers, other: BlockNumbers) -> int:
    """Length in blocks of the common prefix of two paths of one conversation."""
    n = min(len(path), len(other))
    differs = np.flatnonzero(path[:n] != other[:n])
    return int(differs[0]) if len(differs) else n


def renumbered(paths: Sequence[BlockNumbers], first: int = 1) -> list[list[int]]:
    """Paths with block numbers replaced by dense ids in the order of first appearance, starting at `first`."""
    ids: dict[int, int] = {}
    return [[ids.setdefault(block, first + len(ids)) for block in path.tolist()] for path in paths]
