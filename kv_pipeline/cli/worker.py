"""`kv-pipeline worker`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kv_pipeline.cluster.shared_folder import folder_for_workers
from kv_pipeline.errors import UsageError, needs_extra
from kv_pipeline.remote.url import Location


def worker_command(inbox: Location, store: Location, processes: int, name: str) -> None:
    """Become a Celery worker; ends when it is told to.

    Raises:
        UsageError: A setting is missing, or the store is in a bucket.
    """
    from kv_pipeline.defs.instance import BROKER_VARIABLE, HOME_VARIABLE, home_of, open_instance

    folder = folder_for_workers(store)
    needs_extra("dagster_celery", "cluster", "A worker")
    if not os.environ.get(BROKER_VARIABLE):
        raise UsageError(f"Set {BROKER_VARIABLE} to the broker, as in redis://host:6379/0 or amqp://user@host:5672//.")
    if isinstance(inbox, Path) and not inbox.is_dir():
        raise UsageError(f"{inbox} is no folder. Name the landing folder that the command has with --inbox.")
    with open_instance(folder):  # before the first run: it makes what is missing
        pass
    os.environ |= {
        "KV_PIPELINE_INBOX": str(inbox.resolve() if isinstance(inbox, Path) else inbox),
        "KV_PIPELINE_STORE": str(folder.resolve()),
        HOME_VARIABLE: str(home_of(folder)),
    }
    # RabbitMQ turns away a second worker of the same name.
    options = ["--concurrency", str(processes), "--hostname", f"{name}-{os.getpid()}@%h", "--loglevel", "WARNING"]
    command = ["-m", "celery", "--app", "kv_pipeline.cluster.celery_app", "worker", *options, "--without-gossip"]
    os.execv(sys.executable, [sys.executable, *command])  # noqa: S606 - ourselves, with arguments of ours
