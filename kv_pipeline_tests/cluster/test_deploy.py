"""The configurations to copy are those that commands write themselves."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef

from kv_pipeline.cli.worker import worker_command
from kv_pipeline.defs.build import build_defs
from kv_pipeline.defs.instance import BROKER_VARIABLE, HOME_VARIABLE, POSTGRES_VARIABLE, open_instance
from kv_pipeline.defs.partitions import BATCH_VARIABLE
from kv_pipeline.errors import UsageError
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store
from kv_pipeline_tests.services import postgres_database

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize(("name", "has_broker"), [("postgres", False), ("celery", True)])
def test_configurations_are_those_that_commands_write(name, has_broker, tmp_path, monkeypatch):
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    monkeypatch.delenv(BROKER_VARIABLE, raising=False)
    if has_broker:
        monkeypatch.setenv(BROKER_VARIABLE, "redis://127.0.0.1:1/0")
    with postgres_database() as url:
        monkeypatch.setenv(POSTGRES_VARIABLE, url)
        with open_instance(tmp_path):
            written = json.loads((tmp_path / "dagster/dagster.yaml").read_text())
        reference = InstanceRef.from_dir(str(tmp_path / "dagster"), config_dir=str(DEPLOY / name))
        with dg.DagsterInstance.from_ref(reference) as instance:
            assert instance.get_runs_count() == 0
            assert instance.run_monitoring_enabled
            assert instance.run_retries_enabled == has_broker
    assert yaml.safe_load((DEPLOY / name / "dagster.yaml").read_text()) == written


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_recipes_are_yaml(path):
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize(("size", "most"), [(None, None), ("7", 7)])
def test_backfills_are_spread_when_asked_for(size, most, monkeypatch):
    monkeypatch.delenv(BATCH_VARIABLE, raising=False)
    if size:
        monkeypatch.setenv(BATCH_VARIABLE, size)
    asset = build_defs().resolve_assets_def("traces")
    assert asset.backfill_policy is not None
    assert asset.backfill_policy.max_partitions_per_run == most


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_batch_sizes_are_numbers(size, monkeypatch):
    monkeypatch.setenv(BATCH_VARIABLE, size)
    with pytest.raises(UsageError, match=BATCH_VARIABLE):
        build_defs()


def test_a_worker_needs_a_broker_and_a_landing_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(BROKER_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=BROKER_VARIABLE):
        worker_command(tmp_path, tmp_path / "store", 1, "w")
    monkeypatch.setenv(BROKER_VARIABLE, "redis://127.0.0.1:1/0")
    with pytest.raises(UsageError, match="landing folder"):
        worker_command(tmp_path / "nowhere", tmp_path / "store", 1, "w")


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv(POSTGRES_VARIABLE, "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(UsageError, match=r"pip install 'kv-pipeline\[cluster\]'"), open_instance(tmp_path):
        pass
    with pytest.raises(UsageError, match="--engine celery"):
        bring_up_to_date(Store.open(tmp_path / "store"), Inputs(DEPLOY.parent / "data/example"), batch_size=1)
