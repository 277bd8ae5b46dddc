"""One spelling for a model, whoever served it: the key of prices and model facts.

The same model is named differently by API, clouds, gateways and clients. Only spelling is unified here; a model that
no table knows stays unknown, whatever family its name suggests.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_CONTEXT_TAG: Final = re.compile(r"\[1m\]$")
_GATEWAY: Final = re.compile(r"^.*/")
_BEDROCK: Final = re.compile(r"^(?:[a-z-]+\.)?anthropic\.(?=claude-)")
_BEDROCK_VERSION: Final = re.compile(r"-v\d+(?::\d+)?$")
_SNAPSHOT: Final = re.compile(r"(?:[-@](?:20\d{6}|20\d{2}-\d{2}-\d{2}|latest)|@default)$")
_VERSION_DOT: Final = re.compile(r"(?<=\d)\.(?=\d)")
_VERSION_FIRST: Final = re.compile(r"^claude-(\d+(?:-\d+)?)-([a-z]+)$")
_ZERO_MINOR: Final = re.compile(r"(?<=-\d)-0$")


@lru_cache(maxsize=4096)
def canonical_model(model: str) -> str:
    """Name of a model without snapshot date, context tag, cloud or gateway.

    Args:
        model: As a request, an answer or a price list names it.

    Returns:
        Lower-case `claude-<family>-<major>[-<minor>]` for models of Claude; other names only lose what surrounds them.

    >>> canonical_model("us.anthropic.claude-sonnet-4-20250514-v1:0")
    'claude-sonnet-4'
    >>> canonical_model("anthropic/claude-3.5-haiku")
    'claude-haiku-3-5'
    >>> canonical_model("claude-opus-4-5@20251101"), canonical_model("claude-sonnet-4-6[1m]")
    ('claude-opus-4-5', 'claude-sonnet-4-6')

    Source: platform.claude.com, "Models overview" (ids on the API, Amazon Bedrock and Google Cloud);
    code.claude.com, "Model configuration" (`[1m]`).
    """
    name = _CONTEXT_TAG.sub("", model.strip().lower())
    name = _BEDROCK.sub("", _GATEWAY.sub("", name))
    if not name.startswith("claude-"):
        return name
    name = _SNAPSHOT.sub("", _BEDROCK_VERSION.sub("", name))
    name = _VERSION_FIRST.sub(r"claude-\2-\1", _VERSION_DOT.sub("-", name))
    return _ZERO_MINOR.sub("", name)


def asks_for_long_context(model: str) -> bool:
    """Whether the client's name of the model carries the tag of the 1M token context window."""
    return _CONTEXT_TAG.search(model.strip().lower()) is not None
