"""Killed at any moment, a run leaves a bucket from which another machine goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from kv_pipeline_tests.remote.conftest import EXAMPLE
from kv_pipeline_tests.s3 import Server
from kv_pipeline_tests.test_crash import Driver, driver

N_KILLS = 3
SEED = 1
LEASE = "writer.lease"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    folder = tmp_path_factory.mktemp("trial")
    (folder / "inbox").mkdir()
    (folder / "inbox" / "grace").symlink_to(EXAMPLE / "grace")
    with driver(folder) as found:
        yield found


def test_a_run_killed_at_any_step_and_finished_by_another_machine_is_as_if_never_killed(one, server: Server, tmp_path):
    bucket = server.bucket()
    bucket.upload(EXAMPLE / "grace", "inbox/grace")

    def run(store: str, machine: str, kill_at: int | None = None):
        cache = str(tmp_path / machine)
        environment = server.environment | {"KV_PIPELINE_CACHE": cache, "KV_PIPELINE_LEASE_S": "1"}
        return one.run(bucket.url(store), bucket.url("inbox"), kill_at, **environment)

    whole = run("whole", "first")
    assert whole["status"] == 0
    expected = bucket.contents("whole")
    del expected[LEASE]
    moments = random.Random(SEED).sample(range(1, whole["n_steps"]), N_KILLS)  # noqa: S311
    for kill_at in moments:
        name = f"killed-{kill_at}"
        assert run(name, "first", kill_at)["is_killed"], name
        assert_no_state_without_tables(bucket, name)
        assert run(name, "second")["status"] == 0, name
        found = bucket.contents(name)
        del found[LEASE]
        assert found == expected, name


def assert_no_state_without_tables(bucket, name: str) -> None:
    """What state says is up to date is there."""
    there = bucket.names(name)
    for table in ("raw_requests", "message_index", "tokenized_blocks", "traces", "validation_report"):
        if f"state/{table}.json" in there:
            keys = json.loads(bucket.get(f"{name}/state/{table}.json"))
            assert {f"{table}/{key}.parquet" for key in keys} <= {*there}, table
