"""How much of hostile or damaged input is taken at a time, and which links are followed; from the environment."""

from __future__ import annotations

import os
from typing import Final

from kv_pipeline.environment import whole_number

PAYLOAD_VARIABLE: Final = "KV_PIPELINE_MAX_PAYLOAD_BYTES"
LINKS_VARIABLE: Final = "KV_PIPELINE_FOLLOW_LINKS"
MAX_PAYLOAD_BYTES: Final = 128 * 1024 * 1024
"""A request, an answer, or a line of a log. The API takes 32 MB; proxies keep answers as events, too."""


def max_payload_bytes() -> int:
    """Largest request, answer or line that is read.

    Raises:
        UsageError: The setting is no whole number of at least 1.
    """
    return whole_number(PAYLOAD_VARIABLE, "bytes") or MAX_PAYLOAD_BYTES


def follows_links() -> bool:
    """Whether links that lead out of the landing folder may be followed at all."""
    return os.environ.get(LINKS_VARIABLE, "1") not in {"0", "no", "false"}
