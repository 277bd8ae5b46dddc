"""The statistics of a store as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.core.conversation_blocks import ConversationBlocks
from kv_pipeline.core.prices import PriceTable
from kv_pipeline.errors import UsageError
from kv_pipeline.reports.figures.curves import SCOPES
from kv_pipeline.reports.frames.curves import fleet_curve_frames, stored
from kv_pipeline.reports.frames.money import causes
from kv_pipeline.reports.frames.requests import all_conversations
from kv_pipeline.reports.frames.sums import gaps_s, growth_per_request, percentiles, totals, unpriced_models
from kv_pipeline.reports.texts import DEFINITION, NOT_EXPLAINED, NOTHING, count, dollars, duration, money_note, percent
from kv_pipeline.steps.conversations import Progress, no_progress
from kv_pipeline.steps.selection import selected_conversations
from kv_pipeline.store import Store

_WIDTH: Final = 118
_LIFETIME: Final = "5m"


class Statistics(NamedTuple):
    """What the text is made of.

    Attributes:
        requests: As `request_rows` gives.
        n_compactions: Compactions of contexts.
        ttl_curve: Per scope and lifetime, as `fleet_curve_frames` gives.
    """

    requests: pl.DataFrame
    n_compactions: int
    ttl_curve: pl.DataFrame


def statistics(
    store: Store, prices: PriceTable, conversation_ids: Sequence[str] | None = None, progress: Progress = no_progress
) -> Statistics:
    """What `text` prints, of all conversations or those named.

    Raises:
        UsageError: A conversation does not exist, or there are none.
    """
    keys = selected_conversations(store, conversation_ids)
    if not keys:
        raise UsageError("The store has no conversations yet. Fill it with `kv-pipeline run`.")
    requests: list[pl.DataFrame] = []
    blocks: list[ConversationBlocks] = []
    n_compactions = 0
    for conversation in all_conversations(store, keys, prices):
        requests.append(conversation.requests)
        blocks.append(stored(conversation.blocks, store.settings.block_size))
        n_compactions += conversation.compactions.height
        progress(1)
    return Statistics(pl.concat(requests), n_compactions, fleet_curve_frames(blocks, _LIFETIME, None)["ttl_curve"])


def text(found: Statistics) -> str:
    """The statistics as text, with the definition of hit rate."""
    total = totals(found.requests).row(0, named=True)
    parts = [
        _heading("Prompt cache statistics"),
        _wrapped(DEFINITION + money_note(unpriced_models(found.requests))),
        _heading("Totals"),
        _facts(_totals(total, found.requests["conversation_id"].n_unique())),
        _heading("Models"),
        _models(found.requests),
        _heading("Context, prompt tokens as the API counts them"),
        _facts(_context(found)),
        _heading("Time between an agent's requests"),
        _facts(_times(found.requests)),
        _heading("Lifetimes (blocks model)"),
        _lifetimes(found.ttl_curve),
        _heading("Causes of loss"),
        _causes(found.requests) if total["predicted_hit_rate"] is not None else NOT_EXPLAINED,
    ]
    return "\n".join(parts) + "\n"


def _totals(total: dict[str, Any], n_conversations: int) -> list[tuple[str, str]]:
    return [
        ("conversations", count(n_conversations)),
        ("requests, of them billed", f"{count(total['n_requests'])}, {count(total['n_billed'])}"),
        ("agents", count(total["n_agents"])),
        ("prompt tokens counted, billed", f"{count(total['prompt_tokens'])}, {count(total['billed_prompt_tokens'])}"),
        ("cache read tokens simulated, billed", f"{count(total['hit_tokens'])}, {count(total['billed_read_tokens'])}"),
        ("hit rate simulated (blocks model)", percent(total["simulated_hit_rate"])),
        ("hit rate predicted (API model)", percent(total["predicted_hit_rate"])),
        ("hit rate billed", percent(total["billed_hit_rate"])),
        ("simulated less billed, points", f"{total['difference_points']:+.2f}"),
        ("predicted less billed, points", _signed(total["predicted_difference_points"])),
        ("reads predicted to the token", percent(total["exact_share"])),
        ("output tokens", count(total["output_tokens"])),
        ("billed cost", dollars(total["cost_usd"])),
        ("cost without caching", dollars(total["cost_without_caching_usd"])),
        ("saved by caching", dollars(total["savings_usd"])),
    ]


def _models(requests: pl.DataFrame) -> str:
    rows = [
        (row["model"], count(row["n_requests"]), count(row["prompt_tokens"]), count(row["output_tokens"]),
         percent(row["simulated_hit_rate"]), percent(row["predicted_hit_rate"]), percent(row["billed_hit_rate"]),
         percent(row["exact_share"]))
        for row in totals(requests, ["model"]).sort("model").iter_rows(named=True)
    ]  # fmt: skip
    headings = ("model", "requests", "prompt tokens", "output tokens", "simulated", "predicted", "billed", "exact")
    return table(headings, rows)


def _context(found: Statistics) -> list[tuple[str, str]]:
    requests = found.requests
    lengths = percentiles(requests["context_tokens"])
    fullest = requests["context_share"].max()
    return [
        *((name, count(value)) for name, value in lengths.items()),
        ("growth a request", f"{growth_per_request(requests):+,.0f}"),
        ("fullest window", NOTHING if fullest is None else percent(float(fullest))),  # type: ignore[arg-type]
        ("compactions", count(found.n_compactions)),
    ]


def _times(requests: pl.DataFrame) -> list[tuple[str, str]]:
    between = {"start to start": gaps_s(requests), "think time": requests["think_time_s"],
               "API time": requests["api_time_s"]}  # fmt: skip
    return [
        (name, ", ".join(f"{key} {duration(value)}" for key, value in percentiles(values).items()))
        for name, values in between.items()
    ]


def _lifetimes(curve: pl.DataFrame) -> str:
    shared = curve.filter(pl.col("scope") == SCOPES["fleet"])
    alone = curve.filter(pl.col("scope") == SCOPES["conversation"]).select("lifetime", alone_hit_rate="hit_rate")
    rows = [
        (row["lifetime"], percent(row["alone_hit_rate"]), percent(row["hit_rate"]), count(row["mean_resident_blocks"]),
         count(row["prefill_blocks"]))
        for row in shared.join(alone, on="lifetime", maintain_order="left").iter_rows(named=True)
    ]  # fmt: skip
    headings = ("lifetime", "hit rate alone", "hit rate shared", "working set, blocks", "blocks computed")
    note = (
        "alone: each conversation has a cache of its own; shared: all share one, which working set (blocks held, "
        "averaged over time) and blocks computed belong to."
    )
    return table(headings, rows) + "\n" + _wrapped(note)


def _causes(requests: pl.DataFrame) -> str:
    found = causes(requests)
    if found.is_empty():
        return "Nothing was lost."
    rows = [
        (row["cause"], count(row["n_requests"]), count(row["lost_tokens"]), percent(row["lost_share"]),
         dollars(row["lost_usd"]), row["description"])
        for row in found.iter_rows(named=True)
    ]  # fmt: skip
    return table(("cause", "requests", "lost tokens", "share", "lost", "means"), rows, left=(0, 5))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Aligned columns: `left` ones to the left, others to the right."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]

    def aligned(line: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join(map(aligned, lines))


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in facts)
    return "\n".join(f"{label.ljust(width)}  {value}" for label, value in facts)


def _heading(title: str) -> str:
    return f"\n{title}\n{'-' * len(title)}"


def _wrapped(words: str) -> str:
    return textwrap.fill(words, _WIDTH)


def _signed(points: float | None) -> str:
    return NOTHING if points is None else f"{points:+.2f}"
