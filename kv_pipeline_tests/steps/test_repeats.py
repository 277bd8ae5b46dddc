from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kv_pipeline.core.repeats import WINDOW_TOKENS
from kv_pipeline.errors import StoreError
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.schemas.blocks import TOKENIZED_BLOCKS
from kv_pipeline.schemas.requests import SEGMENTS
from kv_pipeline.steps.repeats import CONTENT_REUSE, content_reuse
from kv_pipeline.steps.reuse import conversation_reuse_frames, fleet_reuse_frames
from kv_pipeline.store import Store
from kv_pipeline_tests import factories, oracle

FILE = " ".join(f"line {number} of the harbour master's log" for number in range(60))
OTHER = " ".join(f"entry {number} in quite another book" for number in range(60))


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    made = Store.open(tmp_path_factory.mktemp("repeats") / "store")
    bring_up_to_date(made, Inputs(Path("data/example").resolve()))
    return made


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Ada reads a file, something else, then the file again; bob, later, begins with that file behind another word."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("moved")
        store = factories.open_store(root / "store", patch)
        first = [factories.user_message(FILE)]
        second = [*first, factories.assistant_message(OTHER), factories.user_message(FILE)]
        rows = [factories.recorded("a0", 0, messages=first), factories.recorded("a1", 60, messages=second)]
        factories.write_database(root / "in" / "ada" / "requests.db", rows)
        factories.write_transcript(root / "in" / "ada", "s", [("a0", 0), ("a1", 60)])
        late = [factories.user_message("Once more. " + FILE)]
        factories.write_database(root / "in" / "bob" / "requests.db", [factories.recorded("b0", 90, messages=late)])
        factories.write_transcript(root / "in" / "bob", "s", [("b0", 90)])
        factories.bring_up_to_date(store, root / "in")
        yield store


def test_a_file_read_twice_is_found_behind_the_prefix(moved):
    rows = {row["conversation_id"]: row for row in content_reuse(moved).to_dicts()}
    n_file = len(oracle.encode(FILE))
    assert rows["bob/s"]["repeated_tokens"] == 0
    assert n_file - 2 <= rows["ada/s"]["repeated_tokens"] <= n_file + 20  # and some JSON around it


def test_a_fleet_finds_it_in_other_conversations(moved):
    rows = {row["conversation_id"]: row for row in content_reuse(moved, "fleet").to_dicts()}
    n_file = len(oracle.encode(FILE))
    assert n_file - 2 <= rows["bob/s"]["repeated_tokens"] <= n_file + 20
    assert rows["ada/s"]["repeated_tokens"] < 2 * n_file


@pytest.mark.parametrize("scope", ["conversation", "fleet"])
def test_hits_are_those_of_an_unbounded_cache(example, scope):
    frame = content_reuse(example, scope)
    keys = example.partitions(TOKENIZED_BLOCKS.name)
    curves = (
        [fleet_reuse_frames(example)] if scope == "fleet" else [conversation_reuse_frames(example, k) for k in keys]
    )
    last = [curve.ttl_curve.row(-1, named=True) for curve in curves]
    assert frame.schema == CONTENT_REUSE
    assert frame["conversation_id"].to_list() == keys
    assert frame["prefix_hit_tokens"].sum() == sum(row["hit_tokens"] for row in last)
    assert frame["prompt_tokens"].sum() == sum(row["prompt_tokens"] for row in last)
    assert frame["repeated_tokens"].max() >= WINDOW_TOKENS
    assert frame["new_tokens"].min() > 0


def test_without_content_it_says_so(example, tmp_path):
    shutil.copytree(example.root, tmp_path / "store")
    purged = Store.open(tmp_path / "store")
    for key in purged.partitions(SEGMENTS.name):
        purged.write(SEGMENTS, key, purged.read(SEGMENTS, [key]).clear())
    with pytest.raises(StoreError, match="no longer in the store"):
        content_reuse(purged)


def test_an_empty_store_has_no_rows(tmp_path):
    for scope in ("conversation", "fleet"):
        assert content_reuse(Store.open(tmp_path / "store"), scope).is_empty()
