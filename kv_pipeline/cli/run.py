"""`kv-pipeline run`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from kv_pipeline.cli.display import (
    SHORT_ID,
    console,
    is_narrow,
    print_json,
    print_table,
    say_waiting,
    showing_progress,
)
from kv_pipeline.cluster.shared_folder import folder_for_workers
from kv_pipeline.logs import to_stderr
from kv_pipeline.remote.url import Location, refuse_overlap
from kv_pipeline.reports.summary import (
    conversation_summary,
    not_traced,
    recovered_conversations,
    users_without_conversations,
)
from kv_pipeline.runner import Inputs, RunOutcome, bring_up_to_date
from kv_pipeline.steps.renew import empty
from kv_pipeline.store import Store

SHOWN_NOTICES = 20
_COLUMNS = [
    ("conversation_id", "conversation"), ("n_requests", "requests"), ("n_subagents", "sub-agents"),
    ("prompt_tokens", "tokens"), ("simulated_hit_rate", "simulated"), ("lifetime", "lifetime"),
    ("billed_hit_rate", "billed"), ("difference_points", "difference"), ("predicted_hit_rate", "predicted"),
    ("exact_share", "exact"), ("n_approximate", "approximate"),
]  # fmt: skip
DEFINITION = (
    "tokens: counted prompt tokens, cl100k_base. rate = cache read / (input + cache read + cache write). "
    "simulated: blocks model, scope conversation; predicted: API model; exact: of the requests that use caching, "
    "the share whose read it predicts to the token. approximate: requests put together from transcripts, with "
    "stand-ins for what is unseen."
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run.

    Attributes:
        block_size: Tokens a block of a new store.
        keep_billing_header: Whether a new store hashes billing headers as sent.
        verify: Read every file of the store first.
        rebuild: Make everything again.
        drop_lost: Rebuild although recordings that are no longer there are lost.
        verbose: Whether to log what is only of interest when looking closely.
        batch_size: Most partitions of a run on Celery workers; None if this process does the work.
    """

    block_size: int | None = None
    keep_billing_header: bool | None = None
    verify: bool = False
    rebuild: bool = False
    drop_lost: bool = False
    verbose: bool = False
    batch_size: int | None = None


def run_command(
    inbox: Location, paths: tuple[Path, ...], where: Location, options: RunOptions, *, as_json: bool
) -> bool:  # fmt: skip
    """Bring a store up to date and print what it holds; returns whether some input was left out."""
    started = time.monotonic()
    if options.batch_size is not None:
        folder_for_workers(where)
    refuse_overlap(inbox, where)
    inputs = Inputs(inbox, paths)
    landing = inputs.landing()  # a wrong path should not make a store
    if options.rebuild:
        empty(where, landing, drop_lost=options.drop_lost, on_wait=say_waiting)
    store = Store.open(where, block_size=options.block_size, keep_billing_header=options.keep_billing_header)
    with to_stderr(verbose=options.verbose), showing_progress():
        outcome = bring_up_to_date(
            store, inputs, on_wait=say_waiting, verify_all=options.verify, batch_size=options.batch_size
        )
    elapsed_s = time.monotonic() - started
    (_print_json if as_json else _print)(store, outcome, elapsed_s)
    return outcome.has_left_out


def _print(store: Store, outcome: RunOutcome, elapsed_s: float) -> None:
    out = console()
    summary = conversation_summary(store)
    print_table("Conversations", _shortened(summary) if is_narrow() else summary, _COLUMNS, caption=DEFINITION)
    _print_not_traced(store)
    print_notices(outcome.skipped)
    made = ", ".join(f"{asset} {n}" for asset, n in outcome.recomputed.items())
    out.print(f"Recomputed partitions: {made}." if made else "Everything was up to date.")
    _print_absent(outcome)
    out.print(f"Store: {store.folder}. {elapsed_s:.1f} s.")
    out.print("Next: kv-pipeline report --out DIR | kv-pipeline monitor | kv-pipeline export --out DIR", soft_wrap=True)
    out.print("      kv-pipeline validate | dagster dev -w workspace.yaml")


def _shortened(summary: pl.DataFrame) -> pl.DataFrame:
    """Conversations as short as `export --conversation-id` takes them."""
    user, session = (pl.col("conversation_id").str.split("/").list.get(part) for part in (0, -1))
    return summary.with_columns(conversation_id=user + "/" + session.str.slice(0, SHORT_ID))


def _print_absent(outcome: RunOutcome) -> None:
    out = console()
    if outcome.quarantined:
        out.print(f"Damaged files of the store were moved to quarantine/ and made again: {len(outcome.quarantined)}.")
    if outcome.not_in_landing:
        n_gone = len(outcome.not_in_landing)
        out.print(f"No longer in the landing folder, kept in the store: {n_gone} recordings. --json names them.")


def _print_not_traced(store: Store) -> None:
    frame = not_traced(store)
    if frame.height:
        columns = [("user_id", "user"), ("reason", "reason"), ("n_requests", "requests")]
        print_table("Recorded requests that are in no trace", frame, columns)
    if "unknown" in frame["reason"]:
        console().print("unknown: in no transcript. `kv-pipeline recover` finds their conversations by what they say.")
    for user, n_conversations in recovered_conversations(store).iter_rows():
        console().print(
            f"{user}: {n_conversations} conversations are in no transcript; their structure is recovered from content. "
            "`kv-pipeline recover --help` has more control."
        )
    for user in users_without_conversations(store):
        console().print(f"No transcript of user {user} names a recorded request: put the transcripts into projects/.")


def print_notices(skipped: pl.DataFrame) -> None:
    """Show what was left out or repaired, by reason, and the first of them."""
    if skipped.is_empty():
        return
    counts = skipped.group_by("reason", "is_left_out").agg(n=pl.len()).sort("reason")
    used = pl.when("is_left_out").then(pl.lit("left out")).otherwise(pl.lit("used all the same"))
    columns = [("reason", "reason"), ("used", "input"), ("n", "times")]
    print_table("Notices about the input", counts.with_columns(used=used), columns)
    for source, row, reason, found, remedy, _ in skipped.head(SHOWN_NOTICES).iter_rows():
        where = source if row is None else f"{source}, row {row}"
        console().print(f"  {where}: {found} ({reason}). {remedy}", markup=False)
    if skipped.height > SHOWN_NOTICES:
        console().print(f"  … and {skipped.height - SHOWN_NOTICES} more; --json lists them all.")


def _print_json(store: Store, outcome: RunOutcome, elapsed_s: float) -> None:
    print_json(
        {
            "store": str(store.folder.location),
            "elapsed_s": round(elapsed_s, 3),
            "recomputed_partitions": outcome.recomputed,
            "definition": DEFINITION,
            "conversations": conversation_summary(store).to_dicts(),
            "requests_not_traced": not_traced(store).to_dicts(),
            "recovered_conversations": recovered_conversations(store).to_dicts(),
            "users_without_conversations": users_without_conversations(store),
            "quarantined": outcome.quarantined,
            "not_in_landing": outcome.not_in_landing,
            "notices": outcome.skipped.to_dicts(),
        }
    )
