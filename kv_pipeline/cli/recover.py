"""`kv-pipeline recover`."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl

from kv_pipeline.cli.display import console, print_json, print_table, say_waiting, showing_progress
from kv_pipeline.cli.run import print_notices
from kv_pipeline.export.transcripts import write_transcripts
from kv_pipeline.remote.url import Location, refuse_overlap
from kv_pipeline.reports.summary import conversation_list, not_traced
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.steps.recovery import RecoveryPolicy
from kv_pipeline.store import Store

_COLUMNS = [
    ("conversation_id", "conversation"), ("n_requests", "requests"), ("n_subagents", "sub-agents"),
    ("n_compactions", "compactions"), ("first_request_at_utc", "first"), ("last_request_at_utc", "last"),
]  # fmt: skip


def policy_of(
    min_shared: float, min_prefix_tokens: int, workers: int, *, excludes_indexed: bool, is_automatic: bool
) -> RecoveryPolicy:
    """What the command's options ask for."""
    if is_automatic:
        return RecoveryPolicy()
    return RecoveryPolicy(min_shared, min_prefix_tokens, True, excludes_indexed, workers)


def recover_command(
    inputs: Inputs, where: Location, policy: RecoveryPolicy, out: Path | None, *, as_json: bool
) -> bool:
    """Bring a store up to date with a policy, and say what was recovered; returns whether some input was left out."""
    started = time.monotonic()
    refuse_overlap(inputs.inbox, where)
    inputs.landing()  # a wrong path should not make a store
    store = Store.open(where)
    with store.writing(say_waiting), showing_progress():
        policy.keep(store)
        outcome = bring_up_to_date(store, inputs, on_wait=say_waiting)
    recovered = conversation_list(store).filter(structure="content")
    files = write_transcripts(store, out) if out else []
    elapsed_s = time.monotonic() - started
    if as_json:
        _print_json(store, recovered, files, outcome.skipped, elapsed_s)
    else:
        _print(store, recovered, files, outcome.skipped, elapsed_s)
    return outcome.has_left_out


def _print(store: Store, recovered: pl.DataFrame, files: list[Path], skipped: pl.DataFrame, elapsed_s: float) -> None:
    out = console()
    print_table("Recovered conversations", recovered, _COLUMNS)
    print_table(
        "Recorded requests that are in no trace",
        not_traced(store),
        [("user_id", "user"), ("reason", "reason"), ("n_requests", "requests")],
    )
    print_notices(skipped)
    if files:
        out.print(f"{len(files)} transcripts written.")
    out.print(f"Store: {store.folder}. {elapsed_s:.1f} s.")


def _print_json(
    store: Store, recovered: pl.DataFrame, files: list[Path], skipped: pl.DataFrame, elapsed_s: float
) -> None:
    print_json(
        {
            "store": str(store.folder.location),
            "elapsed_s": round(elapsed_s, 3),
            "recovered_conversations": recovered.to_dicts(),
            "requests_not_traced": not_traced(store).to_dicts(),
            "transcripts": [str(path) for path in files],
            "notices": skipped.to_dicts(),
        }
    )
