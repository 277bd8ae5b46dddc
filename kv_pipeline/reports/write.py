"""Writing the pages and pictures of a store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from kv_pipeline.core.conversation_blocks import ConversationBlocks, conversation_reuse
from kv_pipeline.core.prices import PriceTable
from kv_pipeline.errors import UsageError
from kv_pipeline.kv_models import DEFAULT_KV_MODEL, kv_bytes_per_token
from kv_pipeline.names import TEMPORARY
from kv_pipeline.reports import conversation_page as one
from kv_pipeline.reports import fleet_page as fleet
from kv_pipeline.reports.figures.figure import Figure
from kv_pipeline.reports.frames.curves import fleet_curve_frames, stored
from kv_pipeline.reports.frames.money import causes, what_if
from kv_pipeline.reports.frames.requests import DEFAULT_LIFETIME, Conversation, all_conversations
from kv_pipeline.reports.page.shell import Page, render
from kv_pipeline.reports.pictures import png
from kv_pipeline.schemas.blocks import VALIDATION_SUMMARY
from kv_pipeline.schemas.conversations import CONVERSATIONS
from kv_pipeline.schemas.explanations import WHAT_IF
from kv_pipeline.steps.conversations import Progress, no_progress
from kv_pipeline.steps.fleet import FLEET
from kv_pipeline.steps.repeats import content_reuse
from kv_pipeline.steps.selection import selected_conversations
from kv_pipeline.store import Store


@dataclass(frozen=True)
class ReportOptions:
    """What to write.

    Attributes:
        prices: Prices in force.
        kv_model: Model whose KV bytes a token turn capacities into GB; a name of kv_models.toml.
        with_png: Whether the main figures are written as pictures, too.
        with_content_reuse: Whether to count tokens that were seen before at another position, which reads content.
    """

    prices: PriceTable
    kv_model: str = DEFAULT_KV_MODEL
    with_png: bool = False
    with_content_reuse: bool = False

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that a token takes.

        Raises:
            UsageError: The model is not in the table.
        """
        return kv_bytes_per_token(self.kv_model)

    @property
    def capacity_note(self) -> str:
        """What capacities in GB mean."""
        return f"GB: KV cache of {self.kv_model}, {self.kv_bytes_per_token:,} bytes a token."


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Attributes:
        index: The fleet's page.
        pages: Pages of conversations.
        pictures: PNG files.
        n_requests: Requests shown.
    """

    index: Path
    pages: list[Path]
    pictures: list[Path]
    n_requests: int


def write_reports(
    store: Store,
    out: Path,
    options: ReportOptions,
    conversation_ids: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> ReportResult:
    """Write index.html, a page per conversation under conversations/, and pictures under pictures/ if asked for.

    The same store and options give the same bytes.

    Args:
        store: The store, up to date.
        out: Folder for the files; made if missing.
        options: What to write.
        conversation_ids: Only these; all if None. Session ids, or how they begin, are understood.
        progress: Told of every conversation.

    Raises:
        UsageError: A conversation does not exist, or the folder can't be written.
        StoreError: Content is to be read, but was purged.
    """
    keys = selected_conversations(store, conversation_ids)
    if not keys:
        raise UsageError("The store has no conversations yet. Fill it with `kv-pipeline run`.")
    try:
        return _write_all(store, out, options, keys, progress)
    except OSError as error:
        raise UsageError(f"{error.filename or out} can't be written: {error.strerror}. Name another --out.") from error


def _write_all(
    store: Store, out: Path, options: ReportOptions, keys: Sequence[str], progress: Progress
) -> ReportResult:
    shown: list[Conversation] = []
    blocks: list[ConversationBlocks] = []
    pages: list[Path] = []
    pictures: list[Path] = []
    for conversation in all_conversations(store, keys, options.prices):
        parts = stored(conversation.blocks, store.settings.block_size)
        frames = one.conversation_frames(conversation, conversation_reuse(parts), options.kv_bytes_per_token)
        path = out / "conversations" / f"{conversation.key}.html"
        home = "../" * (conversation.key.count("/") + 1) + "index.html"
        pages.append(_write(path, one.conversation_page(conversation, frames, home, options.capacity_note)))
        if options.with_png:
            pictures += _draw(out / "pictures" / conversation.key, one.PNG_FIGURES, frames)
        shown.append(conversation._replace(blocks=conversation.blocks.clear()))
        blocks.append(parts)
        progress(1)
    page = _fleet(store, shown, blocks, options)
    index = _write(out / "index.html", page)
    if options.with_png:
        pictures += _draw(out / "pictures", fleet.FIGURES, page.frames)
    return ReportResult(index, pages, pictures, sum(each.requests.height for each in shown))


def _fleet(
    store: Store, shown: Sequence[Conversation], blocks: Sequence[ConversationBlocks], options: ReportOptions
) -> Page:
    requests = pl.concat(conversation.requests for conversation in shown)
    keys = requests["conversation_id"].unique()
    users = keys.str.split("/").list.first().unique().sort().to_list()
    mine = pl.col("conversation_id").is_in(keys.implode())
    first_requests = store.read(CONVERSATIONS, users).select("conversation_id", "user_id", "first_request_at_utc")
    scenarios = store.read(WHAT_IF, users).filter(mine)
    lifetimes = [conversation.lifetime for conversation in shown]
    lifetime = max(lifetimes, key=lifetimes.count, default=DEFAULT_LIFETIME)
    frames = {
        **fleet.fleet_frames(requests, store.read(VALIDATION_SUMMARY, [FLEET]).filter(mine), first_requests),
        "causes": causes(requests),
        "what_if": what_if(scenarios, requests, options.prices),
        **fleet_curve_frames(blocks, lifetime, options.kv_bytes_per_token),
    }
    if options.with_content_reuse:
        frames["content_reuse"] = fleet.with_shares(content_reuse(store).filter(mine))
    return fleet.fleet_page(
        frames, requests, options.capacity_note, is_explained=any(each.is_explained for each in shown)
    )


def _write(path: Path, page: Page) -> Path:
    """Whole or not at all: somebody may be looking at the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        temporary.write_text(render(page), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _draw(folder: Path, figures: Sequence[Figure], frames: Mapping[str, pl.DataFrame]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in figures:
        if figure.has_data(frames):
            path = folder / f"{figure.name}.png"
            path.write_bytes(png(figure, frames))
            paths.append(path)
    return paths
