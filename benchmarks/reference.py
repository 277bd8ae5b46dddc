"""What a user would otherwise run: every request tokenised and hashed whole.

Per request json.loads, a deep copy without two fields, json.dumps, tiktoken, and SHA-256 chained over full blocks.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from array import array
from pathlib import Path
from typing import Any

from kv_pipeline.core.tokenizer import reference_encoder

REMOVED = ("cache_control", "signature")
BLOCK_SIZE = 64


def reference_pass(database: Path) -> tuple[int, int]:
    """Tokenise and hash every request of a database; returns requests and blocks."""
    encode = reference_encoder()
    n_requests = n_blocks = 0
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        for (body,) in connection.execute("SELECT body FROM requests ORDER BY rowid"):
            n_blocks += len(block_hashes(json.loads(body), encode))
            n_requests += 1
    return n_requests, n_blocks


def block_hashes(body: dict[str, Any], encode: Any) -> list[bytes]:  # noqa: ANN401
    """Chained SHA-256 of a request's full blocks."""
    tokens = array("I")
    for section in ("tools", "system", "messages"):
        if body.get(section) is not None:
            tokens.extend(encode(json.dumps(without_removed(body[section]), separators=(",", ":"))).tolist())
    parent, hashes = b"", []
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        parent = hashlib.sha256(parent + tokens[start : start + BLOCK_SIZE].tobytes()).digest()
        hashes.append(parent)
    return hashes


def without_removed(value: Any) -> Any:  # noqa: ANN401
    """A deep copy without the removed fields."""
    if isinstance(value, dict):
        return {key: without_removed(item) for key, item in value.items() if key not in REMOVED}
    if isinstance(value, list):
        return [without_removed(item) for item in value]
    return value
