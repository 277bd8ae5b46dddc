"""Processes that hold, write and abandon databases: SQLite's locks are per process, so tests need other ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PRELUDE = """
import os, sqlite3, sys
from kv_pipeline_tests.sources.factories import insert_rows, make_rows
db = sqlite3.connect(sys.argv[1], isolation_level=None)
def ready():
    print("ready", flush=True)
    sys.stdin.readline()
"""

LOCK = "db.execute('BEGIN EXCLUSIVE'); ready()"
DIE_IN_TRANSACTION = """
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
insert_rows(db, [dict(row, id="lost " + row["id"]) for row in make_rows(40, body_bytes=20_000)])
db.execute("UPDATE requests SET body = 'overwritten' WHERE id LIKE 'r%'")
os.kill(os.getpid(), 9)
"""
WRITE_WAL = """
db.execute("PRAGMA journal_mode = WAL")
db.execute("PRAGMA wal_autocheckpoint = 0")
insert_rows(db, [dict(row, id="wal " + row["id"]) for row in make_rows(3)])
"""
DIE_WITH_WAL = WRITE_WAL + "os.kill(os.getpid(), 9)"
HOLD_WAL = WRITE_WAL + "ready()"
KEEP_WRITING_WAL = """
import threading
db.execute("PRAGMA journal_mode = WAL")
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
print("ready", flush=True)
n = 0
while not stop.is_set():
    n += 1
    insert_rows(db, [dict(row, id=f"live {n} {row['id']}") for row in make_rows(1)])
"""


def run_writer(script: str, database: Path) -> None:
    """Run a writer to its end, which for some is a violent one."""
    subprocess.run([sys.executable, "-c", _PRELUDE + script, str(database)], check=False, timeout=30)


@contextmanager
def running_writer(script: str, database: Path) -> Iterator[None]:
    """A writer that is at work while the block runs."""
    command = [sys.executable, "-c", _PRELUDE + script, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.stdin.write("\n")
            process.stdin.flush()
            try:
                process.wait(timeout=30)
            finally:
                process.kill()
