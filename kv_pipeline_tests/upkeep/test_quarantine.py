"""Damaged tables of a real store: found, moved aside, made again; and what can't be made again is said."""

from __future__ import annotations

import os
import shutil

import pytest

from kv_pipeline.errors import StoreError
from kv_pipeline.steps.index import conversations
from kv_pipeline_tests.upkeep.conftest import assert_same, moved


def damage(path, kind="page"):
    content = bytearray(path.read_bytes())
    if kind == "page":
        content[len(content) // 3] ^= 4
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)


def first_files(place):
    """One file of every table."""
    tables = sorted({path.relative_to(place.store.root).parts[0] for path in place.store.root.rglob("*.parquet")})
    return {table: sorted((place.store.root / table).rglob("*.parquet"))[-1] for table in tables}


def test_one_damaged_file_of_every_table_is_set_aside_and_made_again(place):
    expected = place.tables()
    hurt = first_files(place)
    assert len(hurt) > 15
    for number, path in enumerate(hurt.values()):
        damage(path, "page" if number % 2 else "end")
    outcome = place.run()
    assert outcome.quarantined == sorted(str(path.relative_to(place.store.root)) for path in hurt.values())
    assert_same(place.tables(), expected)
    assert place.store.quarantined() == []
    aside = {str(path.relative_to(place.store.root / "quarantine")) for path in
             (place.store.root / "quarantine").rglob("*.parquet")}  # fmt: skip
    assert aside == set(outcome.quarantined)
    again = place.run()
    assert (again.quarantined, again.recomputed) == ([], {})


def test_a_table_that_is_damaged_while_it_is_read_is_made_again_by_the_next_run(place):
    """A reader that finds it sets it aside; so the run after that has nothing to find."""
    expected = place.tables()
    damage(place.store.path("conversations", "ada"), "end")
    with pytest.raises(StoreError, match="was moved to quarantine"):
        conversations(place.store)
    outcome = place.run()
    assert outcome.quarantined == []
    assert_same(place.tables(), expected)


@pytest.mark.parametrize("table", ["raw_requests", "segments", "transcript_answers"])
def test_what_nothing_can_make_again_leaves_all_results_and_is_said(place, tmp_path, table):
    place = moved(place, tmp_path / "inbox", "linus")
    place.run()
    before = place.tables()
    (path,) = (place.store.root / table).glob("linus*/requests.parquet" if table[0] in "rs" else "linus.parquet")
    damage(path)
    for _ in range(2):
        outcome = place.run()
        (notice,) = outcome.skipped.filter(reason="damaged_table").iter_rows(named=True)
        assert notice["source"] == "linus"
        assert table in notice["found"]
        assert outcome.has_left_out
        assert "linus/requests" in outcome.not_in_landing
        assert_same(place.tables(), {name: frame for name, frame in before.items() if place.store.root / name != path})
    shutil.copytree("data/example/linus", place.inbox / "linus")
    place.run()
    assert place.run().skipped.filter(reason="damaged_table").is_empty()
    assert path.exists()


def test_records_that_are_lost_are_made_again_of_what_is_there(place, tmp_path):
    """Recordings that left the landing folder stay known, though the records of them are gone."""
    place = moved(place, tmp_path / "inbox", "linus")
    place.run()
    expected = place.tables()
    for path in (place.store.root / "state").glob("raw_requests*"):
        path.write_bytes(b"{")
    place.store.path("message_index", "linus/requests").unlink()
    os.truncate(place.store.path("agents", "linus"), 100)
    place.run()
    assert_same(place.tables(), expected)
