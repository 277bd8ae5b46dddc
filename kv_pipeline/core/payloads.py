"""Base64 payloads (images, PDFs) inside messages: identified by digest, counted as the API counts, never tokenised."""

from __future__ import annotations

import base64
import binascii
import io
import math
from dataclasses import dataclass
from typing import Final

import imagesize
import numpy as np

from kv_pipeline.core.hashing import TokenIds, salted_digest

# Source: platform.claude.com, "Vision": tokens = width * height / 750; larger images are scaled down first, so
# that no edge exceeds 1568 px and the image about 1,600 tokens.
PIXELS_PER_TOKEN: Final = 750
MAX_EDGE_PX: Final = 1568
MAX_IMAGE_TOKENS: Final = 1600
# Source: platform.claude.com, "PDF support": each page uses 1,500 to 3,000 tokens; the middle is taken.
PDF_PAGE_TOKENS: Final = 2250

PAYLOAD_DIGEST_BYTES: Final = 32
_PAYLOAD_TOKEN_BIT: Final = np.uint32(0x8000_0000)


@dataclass(frozen=True, slots=True)
class Payload:
    """One base64 payload taken out of a segment.

    Attributes:
        digest: 32 bytes, salted digest of the base64 text.
        n_bytes: Length of the base64 text.
        estimated_tokens: What the API would count, at least 1.
    """

    digest: bytes
    n_bytes: int
    estimated_tokens: int


def read_payload(salt: bytes, media_type: str, data: str) -> Payload:
    """Describe a base64 payload without keeping it.

    Args:
        salt: Secret of the store.
        media_type: As the request says, e.g. `image/png` or `application/pdf`.
        data: The base64 text.
    """
    encoded = data.encode("utf-8", "surrogatepass")
    tokens = _pdf_tokens(encoded) if media_type == "application/pdf" else _image_tokens(encoded)
    return Payload(salted_digest(salt, encoded, size=PAYLOAD_DIGEST_BYTES), len(encoded), tokens)


def payload_tokens(payload: Payload) -> TokenIds:
    """Stand-in token ids, shape (estimated_tokens,): no vocabulary id, and the same for the same payload only."""
    words = np.frombuffer(payload.digest, dtype="<u4").astype(np.uint32) | _PAYLOAD_TOKEN_BIT
    return np.resize(words, payload.estimated_tokens)


UNSEEN_BLOCK: Final = '{"type":"base64","data":""}'
"""What stands in a segment's text for content that nobody recorded: a payload without its bytes, as for base64."""


def unseen_payload(salt: bytes, key: bytes, n_tokens: int) -> Payload:
    """Content that is known by a name and a length only, such as a client's system prompt.

    Args:
        salt: Secret of the store.
        key: What it is known by; the same key stands for the same content.
        n_tokens: Its length in tokens, at least 1.
    """
    return Payload(salted_digest(salt, b"unseen:" + key, size=PAYLOAD_DIGEST_BYTES), 0, max(1, n_tokens))


def _decoded(encoded: bytes) -> bytes:
    try:
        return base64.b64decode(encoded, validate=False)
    except (binascii.Error, ValueError):
        return b""


def _image_tokens(encoded: bytes) -> int:
    width: int
    height: int
    try:
        width, height = imagesize.get(io.BytesIO(_decoded(encoded)))
    except Exception:  # noqa: BLE001  (parsers of a dozen formats; a broken image fails each in its own way)
        width = height = 0
    if width <= 0 or height <= 0:  # a format whose size can't be read: the API's ceiling
        return MAX_IMAGE_TOKENS
    scale = min(1.0, MAX_EDGE_PX / max(width, height))
    return max(1, min(MAX_IMAGE_TOKENS, math.ceil(width * scale * height * scale / PIXELS_PER_TOKEN)))


def _pdf_tokens(encoded: bytes) -> int:
    content = _decoded(encoded)
    pages = content.count(b"/Type /Page") + content.count(b"/Type/Page")
    trees = content.count(b"/Type /Pages") + content.count(b"/Type/Pages")
    return PDF_PAGE_TOKENS * max(1, pages - trees)
