"""`kv-pipeline purge`, `forget` and `rotate-salt`: what leaves a store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kv_pipeline.cli.display import console, print_json, say_waiting
from kv_pipeline.cli.tables import open_existing, require_store
from kv_pipeline.errors import UsageError
from kv_pipeline.landing import Landing, discover
from kv_pipeline.remote.names import REPORTS
from kv_pipeline.remote.url import Location
from kv_pipeline.store import Store


def purge_command(
    where: Location,
    inbox: Location,
    older_than_days: float | None,
    user_id: str | None,
    *,
    everything: bool,
    as_json: bool,
) -> None:
    """Take the text out of segments and say how much went."""
    from kv_pipeline.steps.purge import purge_text

    if (older_than_days is None) == (not everything):
        raise UsageError("Say how old content must be with --older-than DAYS, or take all of it with --all.")
    store = open_existing(where)
    before = None if older_than_days is None else datetime.now(UTC) - timedelta(days=older_than_days)
    with store.writing(say_waiting):
        if user_id is not None:
            _check_user(store, user_id)
        store.sweep()
        purged = purge_text(store, before, user_id)
    back = sorted(set(purged.databases) & set(_landing(inbox).databases))
    if as_json:
        print_json({**purged._asdict(), "in_landing": back})
        return
    out = console()
    out.print(
        f"Purged {purged.n_segments:,} segments, {purged.n_bytes:,} bytes, of {len(purged.databases)} recordings."
    )
    if back:
        out.print(
            f"{len(back)} of these recordings are still in {inbox}: if one changes there, all of it is read again, and "
            "its content comes back. Remove what is not needed, or purge again.",
            markup=False,
        )


def forget_command(
    where: Location, inbox: Location, user_id: str, exports: Sequence[Path], *, as_json: bool
) -> bool:  # fmt: skip
    """Remove a user and say where they may come back from; returns whether something of them is left."""
    from kv_pipeline.defs.history import forget_partitions
    from kv_pipeline.defs.instance import home_of, open_instance
    from kv_pipeline.export.removal import remove_user_files
    from kv_pipeline.steps.forget import begin_to_forget, forget_user

    store = open_existing(where)
    with store.writing(say_waiting):
        begin_to_forget(store, user_id)
        with open_instance(store.root) as instance:
            history = forget_partitions(instance, home_of(store.root), user_id)
        forgotten = forget_user(store, user_id)
        conversations = sorted({*forgotten.conversations, *history.conversations})
        store.folder.fetch(store.folder.unfetched(REPORTS))
        own = [folder for folder in (store.root / REPORTS,) if folder.is_dir()]
        files = [remove_user_files(folder, user_id, conversations) for folder in (*exports, *own)]
    anonymous = [path for found in files for path in found.anonymous]
    removed = [path for found in files for path in found.removed]
    is_back = user_id in _landing(inbox).users
    if as_json:
        print_json({
            "user": user_id, "conversations": conversations, "n_files": forgotten.n_files,
            "n_records": history.n_records,
            "exports_removed": list(map(str, removed)), "exports_anonymous": list(map(str, anonymous)),
            "is_in_landing": is_back,
        })  # fmt: skip
    else:
        _print_forgotten(user_id, forgotten.n_files, history.n_records, len(removed), len(anonymous))
        if is_back:
            console().print(f"Their data is still in {inbox}: the next run reads it. Remove it there.", markup=False)
    return is_back or bool(anonymous) or history.n_records is None


def rotate_command(where: Location, inbox: Location, *, drop_lost: bool, as_json: bool) -> bool:
    """Give a store another salt and make everything again; returns whether something was lost or left out."""
    from kv_pipeline.cli.display import showing_progress
    from kv_pipeline.defs.history import forget_all_partitions
    from kv_pipeline.defs.instance import open_instance
    from kv_pipeline.runner import Inputs, bring_up_to_date
    from kv_pipeline.steps.renew import renew_salt

    require_store(where)
    n_lost = renew_salt(where, discover(inbox), drop_lost=drop_lost, on_wait=say_waiting)
    store = Store.open(where)
    with open_instance(store.root) as instance:
        forget_all_partitions(instance)
    with showing_progress():
        outcome = bring_up_to_date(store, Inputs(inbox), on_wait=say_waiting)
    if as_json:
        print_json({"n_lost_recordings": n_lost, "recomputed_partitions": outcome.recomputed})
    else:
        made = ", ".join(f"{asset} {n}" for asset, n in outcome.recomputed.items()) or "nothing"
        console().print(f"The store has another salt. Made again: {made}. Lost: {n_lost} recordings.")
        console().print("Hashes made with the old salt are worthless now. Exports have none and stay valid.")
    return bool(n_lost) or outcome.has_left_out


def _print_forgotten(user_id: str, n_files: int, n_records: int | None, n_removed: int, n_anonymous: int) -> None:
    out = console()
    out.print(f"Removed {user_id}: {n_files} files of tables, {n_removed} files of exports.", markup=False)
    if n_records is None:
        out.print(
            "Dagster's history is neither in SQLite files nor in PostgreSQL here: it still names their partitions."
        )
    else:
        out.print(f"Dagster's history names none of their partitions any more; {n_records} records were changed.")
    if n_removed:
        out.print("Files about everybody that named them went, too: write reports and sidecars again.")
    if n_anonymous:
        out.print(
            f"{n_anonymous} trace files are anonymous: whose they are can't be told. Export anew, or delete them."
        )


def _check_user(store: Store, user_id: str) -> None:
    from kv_pipeline.steps.forget import known_users

    users = known_users(store)
    if user_id not in users:
        raise UsageError(f"The store knows no user {user_id!r}. There are: {', '.join(users) or 'none'}.")


def _landing(inbox: Location) -> Landing:
    """What is there; nothing, if there is no such folder or nothing under the URL."""
    try:
        return discover(inbox)
    except UsageError:
        if isinstance(inbox, Path) and inbox.is_dir():
            raise
        return Landing()
