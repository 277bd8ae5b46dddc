"""A lease on a run: held by the process that works on it, and by nobody once that process, or its machine, is gone.

It is an advisory lock of a PostgreSQL session. The server frees it when the connection ends: at once when a process is
killed, and after 25 s of silence when a machine is. No clock is compared and nothing has to be cleaned up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg
import sqlalchemy
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy.engine import Connection

from kv_pipeline.defs.postgres import connected
from kv_pipeline.errors import UsageError

_CLIENT: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_SERVER: Final = {"tcp_keepalives_idle": 10, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}


@contextmanager
def leased(instance: dg.DagsterInstance, run_id: str) -> Iterator[bool]:
    """Hold the lease on a run, unless another process has it; gives whether it is held."""
    with connected(_url(instance), **_CLIENT) as connection:
        for name, value in _SERVER.items():
            connection.execute(sqlalchemy.text(f"SET {name} = {value}"))
        yield _try(connection, run_id)


def is_leased(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether some process has the lease on a run."""
    with connected(_url(instance)) as connection:
        return not _try(connection, run_id)


def _try(connection: Connection, run_id: str) -> bool:
    key = int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=8).digest(), "big", signed=True)
    taken = connection.execute(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
    return bool(taken.scalar())


def _url(instance: dg.DagsterInstance) -> str:
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage):
        raise UsageError("Workers need Dagster's storage in PostgreSQL: set KV_PIPELINE_POSTGRES_URL.")
    return storage.postgres_url
