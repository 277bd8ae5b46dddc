"""cl100k_base token ids of text: tiktoken is the definition, gigatoken the engine.

Both read the vocabulary that ships with the package; neither knows special tokens, which is tiktoken's
`encode_ordinary`. The file's SHA-256 is checked before use.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from kv_pipeline.core.hashing import TokenIds
from kv_pipeline.errors import VocabularyError

TOKENIZER_NAME: Final = "cl100k_base"
VOCABULARY_SHA256: Final = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
VOCABULARY_PATH: Final = Path(__file__).parent / "vocabulary" / "cl100k_base.tiktoken"

# Source: tiktoken 0.14, tiktoken_ext/openai_public.py, cl100k_base.
CL100K_PATTERN: Final = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"""
    r"""\s*[\r\n]|\s+(?!\S)|\s"""
)

Encode = Callable[[str], TokenIds]
"""Text to token ids, shape (n,), dtype uint32."""


class Engine(NamedTuple):
    """What tokenises, and where.

    Attributes:
        encode: One text.
        stream: Texts in order, some of them ahead of what is taken.
    """

    encode: Encode
    stream: Callable[[Iterable[str]], Iterator[TokenIds]]


def verified_vocabulary() -> bytes:
    """The vocabulary file's content.

    Raises:
        VocabularyError: The file is missing or its SHA-256 is not `VOCABULARY_SHA256`.
    """
    remedy = "Reinstall kv-pipeline: the vocabulary is part of the package."
    try:
        content = VOCABULARY_PATH.read_bytes()
    except OSError as error:
        raise VocabularyError(f"{VOCABULARY_PATH.name} can't be read. {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != VOCABULARY_SHA256:
        raise VocabularyError(f"{VOCABULARY_PATH.name} has SHA-256 {found}, not {VOCABULARY_SHA256}. {remedy}")
    return content


@cache
def reference_encoder() -> Encode:
    """Tiktoken's `encode_ordinary`: slow, and by definition right."""
    import tiktoken

    lines = (line.split() for line in verified_vocabulary().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding(TOKENIZER_NAME, pat_str=CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return lambda text: np.array(encoding.encode_ordinary(text), dtype=np.uint32)


@cache
def encoder() -> Encode:
    """The fastest engine that is installed; every engine gives the same ids."""
    try:
        import gigatoken
    except ImportError:  # no wheel for this platform: tiktoken gives the same ids, only slower
        return reference_encoder()
    verified_vocabulary()
    tokenizer = gigatoken.Tokenizer.from_tiktoken(VOCABULARY_PATH, pretokenizer="cl100k")
    return lambda text: np.asarray(tokenizer.encode(text), dtype=np.uint32)


def is_loaded() -> bool:
    """Whether this process has the vocabulary."""
    return bool(encoder.cache_info().currsize)


@cache
def local_engine() -> Engine:
    """The engine in this process."""
    return Engine(encoder(), partial(map, encoder()))
