"""Block hashes and other salted digests: the one place that owns their byte encoding.

A published format: change anything here and every stored hash changes, so `HASH_SCHEME` must change with it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.uint32]

HASH_SCHEME: Final = "blake2b-8-keyed/parent-u64le+tokens-u32le/v1"
"""Names algorithm, digest size, key use and byte encoding; stored with the tables that hold block hashes."""

DEFAULT_BLOCK_SIZE: Final = 64
ROOT_PARENT_HASH: Final = bytes(8)
"""The parent of a prompt's first block."""

SEGMENT_ID_BYTES: Final = 16
TOKEN_BYTES: Final = 4


def block_hash(salt: bytes, parent_block_hash: bytes, block: bytes) -> bytes:
    """Hash one full block, chained over its parent.

    Args:
        salt: Secret of the store, 1 to 64 bytes, the BLAKE2b key.
        parent_block_hash: 8 bytes, the hash of the block before, `ROOT_PARENT_HASH` for the first.
        block: `token_bytes` of the block's own tokens.

    Returns:
        8 bytes; tables keep them as little-endian u64.
    """
    hasher = _keyed(salt).copy()
    hasher.update(parent_block_hash + block)
    return hasher.digest()


@lru_cache(maxsize=1)
def _keyed(salt: bytes) -> hashlib.blake2b:
    """The hash of nothing yet: copying it costs less than taking the key in again, a fifth of hashing a block."""
    return hashlib.blake2b(key=salt, digest_size=8)


def token_bytes(tokens: TokenIds) -> bytes:
    """Token ids as hashes take them: each as little-endian u32."""
    return tokens.astype("<u4", copy=False).tobytes()


def chain_block_hashes(salt: bytes, parent_block_hash: bytes, run: bytes, block_size: int) -> tuple[list[bytes], bytes]:
    """Hash the full blocks of a run of tokens that starts at a block boundary, each as `block_hash` does.

    Args:
        salt: Secret of the store.
        parent_block_hash: Hash of the block before the run.
        run: `token_bytes` of n tokens; a tail shorter than `block_size` gets no hash.
        block_size: Tokens a block.

    Returns:
        The hashes of the n // block_size full blocks, and the parent for the block that follows.
    """
    stride = TOKEN_BYTES * block_size
    keyed = _keyed(salt)
    hashes = []
    for start in range(0, len(run) - stride + 1, stride):  # most of what hashing costs: no calls that can be spared
        hasher = keyed.copy()
        hasher.update(parent_block_hash + run[start : start + stride])
        parent_block_hash = hasher.digest()
        hashes.append(parent_block_hash)
    return hashes, parent_block_hash


def hashes_to_u64(hashes: list[bytes]) -> npt.NDArray[np.uint64]:
    """Hashes as the u64 numbers that tables hold, shape (len(hashes),)."""
    return np.frombuffer(b"".join(hashes), dtype="<u8")


def salted_digest(salt: bytes, content: bytes, *, size: int = SEGMENT_ID_BYTES) -> bytes:
    """A digest of content that means nothing without the store's salt.

    Args:
        salt: Secret of the store.
        content: Bytes to identify.
        size: Digest length in bytes; 16 for segment ids, 32 for payloads, 8 for content ids.
    """
    return hashlib.blake2b(content, key=salt, digest_size=size).digest()


def salted_u64(salt: bytes, content: bytes) -> int:
    """`salted_digest` of 8 bytes as the unsigned number that tables hold."""
    return int.from_bytes(salted_digest(salt, content, size=8), "little")
