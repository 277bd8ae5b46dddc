"""How long tools and system prompt are where nobody recorded them: what the first bill has beyond the messages.

The API bills in tokens of its own, more of them than cl100k_base counts. How many more, no transcript tells: an agent's
growth, billed against counted, does not, for thinking is billed once and then dropped, and the JSON around content is
not billed at all (measured on a real log of client 1.0: 0.98 a counted token of growth, 1.14 of the whole first
request). So one ratio, that of a first request, holds for all. The first request of a kind decides for all of its kind,
so that equal prompts stay equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from kv_pipeline.sources.transcript_requests.drafts import Draft

API_TOKENS_PER_TOKEN: Final = 1.14
"""API tokens a cl100k_base token of a first request. Source: the real log (15,036 billed, 13,216 counted)."""


class PrefixKind(NamedTuple):
    """Requests that have the same tools and system prompt, as far as can be told."""

    version: str
    agent_type: str
    model: str


def kind_of(draft: Draft) -> PrefixKind:
    """The kind of a request's tools and system prompt."""
    return PrefixKind(draft.answer.version, draft.wanted.agent_type, draft.answer.model)


def prefix_tokens(drafts: Sequence[Draft], count: Callable[[list[int]], int]) -> dict[PrefixKind, int]:
    """Length of tools and system prompt by kind, in counted tokens; kinds without a bill are left out.

    Args:
        drafts: Requests in order of time.
        count: Segments to counted tokens.
    """
    lengths: dict[PrefixKind, int] = {}
    for draft in drafts:
        kind, billed_tokens = kind_of(draft), _billed_tokens(draft)
        if kind not in lengths and billed_tokens > 0:
            lengths[kind] = max(0, round(billed_tokens / API_TOKENS_PER_TOKEN) - count(draft.messages))
    return lengths


def _billed_tokens(draft: Draft) -> int:
    usage = draft.answer.answer(draft.requested_at).usage
    parts = (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens)
    return sum(part or 0 for part in parts)
