"""Measure Dagster's bookkeeping per conversation and asset, with its own event log and with ours.

Run: ``python -m benchmarks.dagster_events [PARTITIONS] [--only batched]``. The assets do nothing, so all the
time is bookkeeping. One in-process run per storage, in a fresh instance and a fresh process each. "cpu" is the time of
the process itself, without that of a database server: what is left of the milliseconds on a machine that is busy.

PostgreSQL is measured in a database of its own, made on the server that KV_PIPELINE_POSTGRES_URL names, if it is set.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.instance.ref import InstanceRef

from kv_pipeline.defs.event_log import (
    EVENT_ENVIRONMENT,
    delete_dynamic_partitions,
    move_dynamic_partitions_to_end,
    prepare_environment,
)

LIMIT_MS = {"postgres": 2.0}  # per conversation and asset, at 1,000 conversations
SQLITE_LIMIT_MS = 8.0
POSTGRES_VARIABLE = "KV_PIPELINE_POSTGRES_URL"
ASSETS = 3
CONVERSATIONS = dg.DynamicPartitionsDefinition(name="conversations")
EVENT_LOG = {"module": "kv_pipeline.defs.event_log", "class": "BatchedSqliteEventLogStorage"}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
VARIANTS = {  # name: (storage, our environment)
    "default": ("default", False),
    "default+environment": ("default", True),
    "batched": ("batched", True),
    "postgres": ("postgres", True),
}


def make_asset(number: int) -> dg.AssetsDefinition:
    """Return an asset that depends on the one before and reports nothing but its own materialization."""

    @dg.asset(
        name=f"asset_{number}",
        partitions_def=CONVERSATIONS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[f"asset_{number - 1}"] if number else [],
    )
    def nothing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"dagster/row_count": len(context.partition_keys)})

    return nothing


def timed(action: str, seconds: dict[str, float], start: float) -> float:
    """Note how long an action took and return the time."""
    now = time.perf_counter()
    seconds[action] = now - start
    return now


@contextmanager
def overrides_for(storage: str, home: Path) -> Iterator[dict[str, object]]:
    """What an instance's configuration says of its storage; a database is made, and dropped at the end."""
    common: dict[str, object] = {"telemetry": {"enabled": False}}
    if storage == "batched":
        yield {**common, "event_log_storage": {**EVENT_LOG, "config": {"base_dir": str(home / "history/runs")}}}
    elif storage == "postgres":
        with database() as url:
            custom = {"module": "kv_pipeline.defs.postgres", "class": "PostgresStorage"}
            yield {**common, "storage": {"custom": {**custom, "config": {"postgres_url": url}}}}
    else:
        yield common


@contextmanager
def database() -> Iterator[str]:
    """URL of a new database on the server that the environment names."""
    import sqlalchemy
    from sqlalchemy.engine import make_url

    from kv_pipeline.defs.postgres import connected, installed_url

    server, name = os.environ[POSTGRES_VARIABLE], f"kv_benchmark_{uuid.uuid4().hex}"
    with connected(server) as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(installed_url(server)).set(database=name).render_as_string(hide_password=False)
    finally:
        with connected(server) as connection:
            connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))


def measure(home: Path, partitions: int, storage: str) -> dict[str, float]:
    """Time one run over all partitions, and the changes to the list of partition keys, in seconds."""
    with overrides_for(storage, home) as overrides:
        return measure_with(home, partitions, overrides)


def measure_with(home: Path, partitions: int, overrides: dict[str, object]) -> dict[str, float]:
    """As `measure`, in an instance with this configuration."""
    keys = [f"conversation-{number:06d}" for number in range(partitions)]
    assets = [make_asset(number) for number in range(ASSETS)]
    seconds: dict[str, float] = {}
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=overrides)) as instance:
        start = time.perf_counter()
        instance.add_dynamic_partitions("conversations", keys)
        start, start_cpu = timed("add", seconds, start), time.process_time()
        result = dg.materialize(
            assets,
            instance=instance,
            run_config=QUIET,
            tags={
                "dagster/asset_partition_range_start": keys[0],
                "dagster/asset_partition_range_end": keys[-1],
            },
        )
        timed("run", seconds, start)
        seconds["cpu"] = time.process_time() - start_cpu
        assert result.success
        assert len(instance.get_materialized_partitions(dg.AssetKey(f"asset_{ASSETS - 1}"))) == partitions
        start = time.perf_counter()
        move_dynamic_partitions_to_end(instance, "conversations", keys)
        start = timed("move", seconds, start)
        delete_dynamic_partitions(instance, "conversations", keys)
        timed("delete", seconds, start)
    return seconds


def measure_apart(variant: str, partitions: int) -> dict[str, float]:
    """Measure one variant in a process of its own, where only its environment is set."""
    environment = {name: value for name, value in os.environ.items() if name not in EVENT_ENVIRONMENT}
    finished = subprocess.run(
        [sys.executable, __file__, str(partitions), "--child", variant],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    )
    return {action: float(value) for action, value in json.loads(finished.stdout.splitlines()[-1]).items()}


def report(variants: list[str], partitions: int) -> None:
    """Print a table, one line per variant."""
    print(f"{partitions:,} partitions, {ASSETS} assets, one run")
    print(f"{'storage':<22}{'ms per conversation and asset':>30}{'cpu ms':>8}{'add s':>8}{'move s':>8}{'delete s':>10}")
    for variant in variants:
        seconds = measure_apart(variant, partitions)
        per_event_ms = seconds["run"] / partitions / ASSETS * 1e3
        limit_ms = LIMIT_MS.get(variant, SQLITE_LIMIT_MS)
        verdict = "ok" if per_event_ms <= limit_ms else f"over {limit_ms:g}"
        print(
            f"{variant:<22}{f'{per_event_ms:.2f} ({verdict})':>30}{seconds['cpu'] / partitions / ASSETS * 1e3:>8.2f}"
            f"{seconds['add']:>8.2f}{seconds['move']:>8.2f}{seconds['delete']:>10.2f}"
        )


def main() -> None:
    """Measure the variants asked for, or be the child process that measures one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("partitions", nargs="?", type=int, default=1000)
    parser.add_argument("--only", choices=VARIANTS, help="measure one variant instead of all")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is None:
        here = [name for name in VARIANTS if name != "postgres" or os.environ.get(POSTGRES_VARIABLE)]
        report([arguments.only] if arguments.only else here, arguments.partitions)
        return
    storage, with_environment = VARIANTS[arguments.child]
    if with_environment:
        prepare_environment()
    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(measure(Path(home), arguments.partitions, storage)))


if __name__ == "__main__":
    main()
