"""Block hashes are a published format: these values must never change under the same scheme name."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core import hashing
from kv_pipeline_tests import oracle
from kv_pipeline_tests.factories import SALT

# Computed once with hashlib alone, key = bytes 0 … 31, blocks of four ids:
#   blake2b(bytes(8) + struct.pack("<4I", 1, 2, 3, 4), key=bytes(range(32)), digest_size=8).hexdigest(), and so on
GOLDEN = [
    ([1, 2, 3, 4], "e1d99bbba2166d5e"),
    ([1, 2, 3, 4, 5, 6, 7, 8], "3da3da8a52691abf"),
    ([0, 100255, 65536, 2**32 - 1], "46de0836987b8d1f"),
]
GOLDEN_DIGEST = "828f821c25a36bbb7ffc57e8061575c8"


@pytest.mark.parametrize(("tokens", "last_hash"), GOLDEN)
def test_golden_vectors(tokens, last_hash):
    run = hashing.token_bytes(np.array(tokens, dtype=np.uint32))
    hashes, parent = hashing.chain_block_hashes(SALT, hashing.ROOT_PARENT_HASH, run, 4)
    assert hashes[-1].hex() == parent.hex() == last_hash
    assert hashing.HASH_SCHEME == "blake2b-8-keyed/parent-u64le+tokens-u32le/v1"


def test_golden_digest():
    assert hashing.salted_digest(SALT, b"harbour").hex() == GOLDEN_DIGEST
    assert hashing.salted_u64(SALT, b"harbour") == int.from_bytes(
        hashlib.blake2b(b"harbour", key=SALT, digest_size=8).digest(), "little"
    )


def test_tables_hold_hashes_as_little_endian_numbers():
    assert hashing.hashes_to_u64([bytes([1, 0, 0, 0, 0, 0, 0, 0]), bytes([0] * 7 + [128])]).tolist() == [1, 2**63]
    assert hashing.hashes_to_u64([]).tolist() == []


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.integers(1, 9), st.integers(0, 5))
def test_chains_can_be_cut_at_any_block(tokens, block_size, n_first):
    run = hashing.token_bytes(np.array(tokens, dtype=np.uint32))
    cut = 4 * min(n_first * block_size, len(tokens) // block_size * block_size)
    first, parent = hashing.chain_block_hashes(SALT, hashing.ROOT_PARENT_HASH, run[:cut], block_size)
    rest, _ = hashing.chain_block_hashes(SALT, parent, run[cut:], block_size)
    assert hashing.hashes_to_u64(first + rest).tolist() == oracle.block_hashes(tokens, SALT, block_size)


def test_hashes_depend_on_the_salt():
    run = hashing.token_bytes(np.arange(4, dtype=np.uint32))
    assert hashing.chain_block_hashes(b"a", bytes(8), run, 4) != hashing.chain_block_hashes(b"b", bytes(8), run, 4)
