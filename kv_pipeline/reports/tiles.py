"""The main figures at the top of a page."""

from __future__ import annotations

from typing import Any

from kv_pipeline.reports.texts import count, dollars, percent, short_count


def tiles(total: dict[str, Any], n_conversations: int | None = None) -> list[tuple[str, str]]:
    """Label and value of each main figure, from a row of `totals`."""
    known = [
        ("conversations", None if n_conversations is None else count(n_conversations)),
        ("requests", count(total["n_requests"])),
        ("agents", count(total["n_agents"])),
        ("prompt tokens, counted", short_count(total["prompt_tokens"])),
        ("billed hit rate", percent(total["billed_hit_rate"])),
        ("simulated hit rate (blocks)", percent(total["simulated_hit_rate"])),
        ("difference, points", f"{total['difference_points']:+.2f}"),
        ("predicted hit rate (API model)", _known(total["predicted_hit_rate"])),
        ("reads predicted to the token", _known(total["exact_share"])),
        ("output tokens", short_count(total["output_tokens"])),
        ("billed cost", dollars(total["cost_usd"])),
        ("saved by caching", dollars(total["savings_usd"])),
        ("lost tokens", short_count(total["lost_tokens"]) if total["predicted_hit_rate"] is not None else None),
        ("cost of losses", dollars(total["lost_usd"]) if total["predicted_hit_rate"] is not None else None),
    ]
    return [(label, value) for label, value in known if value is not None]


def _known(share: float | None) -> str | None:
    return None if share is None else percent(share)
