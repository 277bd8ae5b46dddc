"""Servers that some tests need: found by environment variables, and skipped with a reason where they are not.

    KV_PIPELINE_TEST_POSTGRES_URL   a PostgreSQL server, with a role that may create databases
    KV_PIPELINE_TEST_RABBITMQ_URL   a RabbitMQ server
    KV_PIPELINE_TEST_REDIS_URL      a Redis server

Each test has a database, a queue, and a Redis prefix of its own, and removes them. A server that is to be restarted is
started by the test itself, from the programs that are installed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

POSTGRES = os.environ.get("KV_PIPELINE_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
RABBITMQ = os.environ.get("KV_PIPELINE_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")
REDIS = os.environ.get("KV_PIPELINE_TEST_REDIS_URL", "redis://127.0.0.1:6379/9")
PORTS = {"postgresql": 5432, "amqp": 5672, "redis": 6379}


def skip_without(url: str) -> None:
    """Skip the test if nothing listens there."""
    parts = urlsplit(url)
    port = parts.port or PORTS[parts.scheme]
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=1).close()
    except OSError as error:
        pytest.skip(f"no {parts.scheme} server at {parts.hostname}:{port} ({error})")


@contextmanager
def postgres_database() -> Iterator[str]:
    """URL of an empty database, which is dropped at the end."""
    skip_without(POSTGRES)
    import sqlalchemy

    from kv_pipeline.defs.postgres import connected

    name = f"kv_test_{uuid.uuid4().hex}"
    try:
        with connected(POSTGRES) as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    except sqlalchemy.exc.OperationalError as error:
        pytest.skip(f"the PostgreSQL server lets nobody in: {type(error.orig).__name__}")
    try:
        yield urlsplit(POSTGRES)._replace(path=f"/{name}").geturl()
    finally:
        with connected(POSTGRES) as connection:
            connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))


class OwnPostgres(NamedTuple):
    """A PostgreSQL server that only the test knows, and may restart.

    Attributes:
        url: Its empty database.
        control: Runs `pg_ctl` on it with more arguments.
    """

    url: str
    control: Callable[..., None]


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """A new server from the installed programs, on a free port of this machine; stopped and removed at the end."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1:] or [Path(shutil.which("initdb") or "")]
    folder = programs[0].parent
    if not (folder / "pg_ctl").exists():
        pytest.skip("no initdb and pg_ctl are installed, so no PostgreSQL server can be started")
    as_other = _not_as_root()
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        if as_other:
            shutil.chown(name, "postgres")
        data = f"{name}/data"
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"

        def control(*arguments: str) -> None:
            command = [*as_other, str(folder / "pg_ctl"), "-D", data, "-l", f"{name}/log", "-w", *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=name)

        initialize = [str(folder / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run([*as_other, *initialize], check=True, stdout=subprocess.DEVNULL, cwd=name)
        control("-o", options, "start")
        try:
            yield OwnPostgres(f"postgresql://postgres@127.0.0.1:{port}/postgres", control)
        finally:
            control("-m", "immediate", "stop")


def _not_as_root() -> list[str]:
    """What to put before a command that PostgreSQL refuses to run as root."""
    if os.geteuid():
        return []
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    if not shutil.which("runuser"):
        pytest.skip("PostgreSQL does not run as root, and runuser is not installed")
    return ["runuser", "-u", "postgres", "--"]


@contextmanager
def broker_queue(broker: str) -> Iterator[str]:
    """Name of a queue of one's own, which is removed at the end with what the broker keeps about it."""
    skip_without(broker)
    from kombu import Connection

    queue = f"kv_test_{uuid.uuid4().hex}"
    try:
        yield queue
    finally:
        with Connection(broker) as connection:
            channel = connection.channel()
            channel.queue_delete(queue)
            channel.exchange_delete(queue)
            if broker.startswith("redis"):
                _forget_in_redis(channel.client, queue)


def _forget_in_redis(client: Any, queue: str) -> None:
    """Remove what kombu keeps of a queue that was deleted, and messages whose worker was killed."""
    for key in client.scan_iter(f"*{queue}*"):
        client.delete(key)
    for tag, message in client.hgetall("unacked").items():
        if queue.encode() in message:
            client.hdel("unacked", tag)
            client.zrem("unacked_index", tag)
