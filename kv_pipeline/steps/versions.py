"""Code versions of the steps: part of every fingerprint, so a changed rule remakes its tables and all after it."""

from __future__ import annotations

from typing import Final

RAW_REQUESTS_VERSION: Final = "4"
CONVERSATION_INDEX_VERSION: Final = "5"
TOKENIZED_BLOCKS_VERSION: Final = "2"
TRACES_VERSION: Final = "1"
VALIDATION_VERSION: Final = "1"
CONTENT_BLOCKS_VERSION: Final = "1"
CACHE_REPORT_VERSION: Final = "1"
