from __future__ import annotations

import json

import polars as pl
import pytest

from kv_pipeline.cli.retention import rotate_command
from kv_pipeline.cli.run import RunOptions, run_command
from kv_pipeline.defs.instance import open_instance
from kv_pipeline.errors import StoreError, UsageError
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store
from kv_pipeline_tests.upkeep.conftest import EXAMPLE, assert_same, moved, tables

SALTED = {"segment_id", "content_id", "row_digest", "new_block_hashes", "block_id", "thinking_id", "billing_header_id"}


def salted_values(frames):
    found = set()
    for frame in frames.values():
        for name in SALTED & set(frame.columns):
            values = frame[name].explode() if frame.schema[name] == pl.List else frame[name]
            found |= set(values.drop_nulls())
    return found


def test_another_salt_remakes_everything_and_no_value_made_with_the_old_one_is_left(
    place, tmp_path, monkeypatch, capsys
):
    n_conversations = len(place.store.partitions("traces"))
    old = salted_values(place.tables())
    assert len(old) > 900
    monkeypatch.setenv("KV_PIPELINE_SALT", "another")
    with pytest.raises(StoreError, match="is not the one it was made with"):
        Store.open(place.store.root)
    assert rotate_command(place.store.root, place.inbox, drop_lost=False, as_json=True) is False
    said = json.loads(capsys.readouterr().out)
    assert (said["n_lost_recordings"], said["recomputed_partitions"]["traces"]) == (0, n_conversations)
    found = place.tables()
    assert salted_values(found) & old == set()
    clean = Store.open(tmp_path / "clean")
    bring_up_to_date(clean, Inputs(EXAMPLE))
    assert_same(found, tables(clean.root))
    with open_instance(place.store.root) as instance:
        assert len(instance.get_dynamic_partitions("conversations")) == n_conversations


def test_what_can_not_be_made_again_is_refused_or_counted(place, tmp_path, monkeypatch, capsys):
    place = moved(place, tmp_path / "inbox", "linus")
    place.run()
    before = place.tables()
    monkeypatch.setenv("KV_PIPELINE_SALT", "another")
    with pytest.raises(UsageError, match=r"1 recordings with \d+ requests .* linus/requests"):
        rotate_command(place.store.root, place.inbox, drop_lost=False, as_json=True)
    assert_same(place.tables(), before)
    assert rotate_command(place.store.root, place.inbox, drop_lost=True, as_json=True) is True
    assert json.loads(capsys.readouterr().out)["n_lost_recordings"] == 1
    store = Store.open(place.store.root)
    assert sorted({key.partition("/")[0] for key in store.partitions("raw_requests")}) == ["ada", "grace", "hedy"]
    # Salts are not in what transcripts said, and nobody else has it any more.
    assert store.partitions("transcript_answers") == ["ada", "grace", "hedy", "linus"]
    with open_instance(store.root) as instance:
        keys = instance.get_dynamic_partitions("conversations")
    assert not [key for key in keys if key.startswith("linus/")]


def test_a_store_of_other_rules_is_rebuilt_when_asked(place, capsys):
    n_conversations = len(place.store.partitions("traces"))
    expected = place.tables()
    path = place.store.root / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hash_scheme": "of long ago", "format_version": 0}))
    with pytest.raises(StoreError, match="--rebuild"):
        run_command(place.inbox, (), place.store.root, RunOptions(), as_json=True)
    assert run_command(place.inbox, (), place.store.root, RunOptions(rebuild=True), as_json=True) is False
    assert json.loads(capsys.readouterr().out)["recomputed_partitions"]["traces"] == n_conversations
    assert_same(place.tables(), expected)
    again = Store.open(place.store.root)
    assert again == place.store
