from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing

import dagster as dg
import pytest
import sqlalchemy

from kv_pipeline.cli.retention import forget_command
from kv_pipeline.defs.history import forget_partitions, scrub
from kv_pipeline.defs.instance import POSTGRES_VARIABLE, open_instance
from kv_pipeline.defs.postgres import connected
from kv_pipeline.errors import UsageError
from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import ExportOptions, Format, Profile
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.steps.forget import begin_to_forget, known_users
from kv_pipeline.store import Store
from kv_pipeline_tests.services import postgres_database
from kv_pipeline_tests.upkeep.conftest import EXAMPLE, assert_same, copy_inbox, mentions, moved, tables


@pytest.fixture(scope="module")
def without_ada(tmp_path_factory):
    """What a store looks like that never met ada."""
    folder = tmp_path_factory.mktemp("without")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_PIPELINE_SALT", "upkeep")
        copy_inbox(EXAMPLE, folder / "inbox", "ada")
        bring_up_to_date(Store.open(folder / "store"), Inputs(folder / "inbox"))
    return tables(folder / "store")


def sessions_of(place, user):
    return [key.partition("/")[2] for key in place.store.partitions("traces") if key.startswith(f"{user}/")]


def test_nothing_of_a_user_is_left_and_the_others_are_as_if_they_had_never_been_there(
    place, tmp_path, without_ada, capsys
):
    sessions = sessions_of(place, "ada")
    place = moved(place, tmp_path / "inbox", "ada")
    assert place.run().not_in_landing
    export_traces(place.store, tmp_path / "traces", ExportOptions(profile=Profile.STRICT))
    assert mentions(tmp_path / "traces", sessions[0].encode())
    assert mentions(place.store.root / "dagster", b"ada/")
    (place.store.root / "reports").mkdir()
    (place.store.root / "reports" / "index.html").write_text(f"ada/{sessions[0]}")
    assert forget_command(place.store.root, place.inbox, "ada", [tmp_path / "traces"], as_json=True) is False
    said = json.loads(capsys.readouterr().out)
    assert (said["user"], said["is_in_landing"], said["n_records"] > 5) == ("ada", False, True)
    assert_same(place.tables(), without_ada)
    for text in (b"ada/", *(session.encode() for session in sessions)):
        assert mentions(place.store.root, text) == []
        assert mentions(tmp_path / "traces", text) == []
    assert mentions(tmp_path / "traces", b"linus")
    with open_instance(place.store.root) as instance:
        keys = [*instance.get_dynamic_partitions("databases"), *instance.get_dynamic_partitions("conversations")]
        assert instance.get_runs_count() > 0
    assert sorted({key.partition("/")[0] for key in keys}) == ["grace", "hedy", "linus"]
    assert place.run().recomputed == {}
    assert known_users(place.store) == ["grace", "hedy", "linus"]


def rows_of(url: str) -> dict[str, str]:
    """Everything that a PostgreSQL database says, by table."""
    with connected(url) as connection:
        tables = sqlalchemy.inspect(connection).get_table_names()
        rows = {
            table: connection.execute(sqlalchemy.text(f'SELECT t::text FROM "{table}" t')).scalars() for table in tables
        }
        return {table: "\n".join(found) for table, found in rows.items()}


def test_nothing_of_a_user_is_left_in_postgresql(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with postgres_database() as url:
        monkeypatch.setenv(POSTGRES_VARIABLE, url)
        store, inbox = Store.open(tmp_path / "store"), copy_inbox(EXAMPLE, tmp_path / "inbox", "linus", "hedy")
        bring_up_to_date(store, Inputs(inbox))
        with connected(url) as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE another (said text)"))
            connection.execute(sqlalchemy.text("INSERT INTO another VALUES ('ada/x')"))
        before = rows_of(url)
        assert {"event_logs", "dynamic_partitions", "run_tags"} <= {
            table for table, said in before.items() if "ada/" in said
        }
        shutil.rmtree(inbox / "ada")
        assert forget_command(store.root, inbox, "ada", [], as_json=True) is False
        assert json.loads(capsys.readouterr().out)["n_records"] > 5
        after = rows_of(url)
        assert {table for table, said in after.items() if "ada/" in said} == {"another"}
        assert "grace/" in after["event_logs"]
        with open_instance(store.root) as instance:
            keys = [*instance.get_dynamic_partitions("databases"), *instance.get_dynamic_partitions("conversations")]
            records = instance.fetch_materializations(dg.AssetKey("traces"), limit=1_000).records
        assert {key.partition("/")[0] for key in keys} == {"grace"}
        assert {str(record.partition_key).partition("/")[0] for record in records} == {"grace", "removed"}
        assert bring_up_to_date(store, Inputs(inbox)).recomputed == {}


def test_a_user_whose_data_is_still_there_comes_back_and_the_command_says_so(place, capsys):
    expected = place.tables()
    assert forget_command(place.store.root, place.inbox, "linus", [], as_json=False) is True
    assert "the next run reads it" in capsys.readouterr().out
    assert known_users(place.store) == ["ada", "grace", "hedy"]
    place.run()
    assert_same(place.tables(), expected)


def test_a_removal_that_was_cut_short_is_finished_by_the_next_run(place, tmp_path, without_ada):
    place = moved(place, tmp_path / "inbox", "ada")
    begin_to_forget(place.store, "ada")
    shutil.rmtree(place.store.root / "raw_requests" / "ada")
    place.run()
    assert_same(place.tables(), without_ada)
    assert known_users(place.store) == ["grace", "hedy", "linus"]


def test_the_last_user(place, tmp_path):
    for user in known_users(place.store):
        forget_command(place.store.root, tmp_path / "nowhere", user, [], as_json=True)
    assert {name: frame.height for name, frame in place.tables().items()} == {"validation_summary/fleet.parquet": 0}
    with pytest.raises(UsageError, match=r"knows no user 'ada'\. There are: none"):
        forget_command(place.store.root, tmp_path, "ada", [], as_json=True)


def test_anonymous_traces_are_counted_and_left(place, tmp_path, capsys):
    export_traces(place.store, tmp_path / "traces", ExportOptions(format=Format.PARQUET))
    n_traces = 1 + len(export_traces(place.store, tmp_path / "traces", ExportOptions(anonymize=True)).files)
    assert forget_command(place.store.root, tmp_path / "x", "ada", [tmp_path / "traces"], as_json=True) is True
    said = json.loads(capsys.readouterr().out)
    assert (len(said["exports_anonymous"]), said["exports_removed"]) == (n_traces, [])


SAID = '{"p": "ada/s-1", "q": "canada/s", "cursor": "{\\"ada/s%20\\": 1}", "u": "ada"}', "ada/x: 3 requests"
SAID_AFTER = (
    '{"p": "removed", "q": "canada/s", "cursor": "{\\"removed\\": 1}", "u": "ada"}',
    "removed 3 requests",
)


def test_only_whole_keys_are_replaced(tmp_path):
    with closing(sqlite3.connect(tmp_path / "x.db")) as database, database:
        database.execute("CREATE TABLE t (a TEXT, n INTEGER, b VARCHAR(9))")
        database.execute("INSERT INTO t VALUES (?, 1, ?)", SAID)
    assert scrub(tmp_path / "x.db", "ada") == 2
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        (row,) = database.execute("SELECT a, b FROM t").fetchall()
    assert row == SAID_AFTER


def test_only_whole_keys_are_replaced_in_postgresql(tmp_path, monkeypatch):
    with postgres_database() as url:
        monkeypatch.setenv(POSTGRES_VARIABLE, url)
        with open_instance(tmp_path) as instance:
            instance.daemon_cursor_storage.set_cursor_values(dict(zip("ab", SAID, strict=True)))
            assert forget_partitions(instance, tmp_path / "dagster", "ada").n_records == 2
            found = instance.daemon_cursor_storage.get_cursor_values({"a", "b"})
    assert (found["a"], found["b"]) == SAID_AFTER
