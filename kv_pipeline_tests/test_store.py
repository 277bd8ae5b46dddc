from __future__ import annotations

import fcntl
import json
import os
import stat
import string
import subprocess
import sys
import threading

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kv_pipeline.errors import StoreError
from kv_pipeline.names import safe_name
from kv_pipeline.quarantine import is_sound, verify
from kv_pipeline.schemas.columns import column, frame_of, polars_schema, table
from kv_pipeline.schemas.quick import surely_holds
from kv_pipeline.schemas.transcripts import TRANSCRIPT_ANSWERS
from kv_pipeline.store import Store, judge, judge_all
from kv_pipeline.store_settings import FORMAT_VERSION, SALT_VARIABLE, empty_for_rebuild, replace_salt

SMALL = table("small", "One row per thing.", unique=["a"], columns={"a": column(pl.UInt32(), "A number.")})

PAIRS = table(
    "pairs",
    "One row per thing.",
    unique=["a"],
    columns={"a": column(pl.UInt32(), "A number."), "b": column(pl.UInt32(), "Another.", nullable=True)},
)


def small(*values):
    return frame_of(SMALL, [(value,) for value in values])


@pytest.fixture(autouse=True)
def no_salt_from_outside(monkeypatch):
    monkeypatch.delenv(SALT_VARIABLE, raising=False)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def files(store):
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


# --- Names ------------------------------------------------------------------------------------------------------------

names = st.one_of(
    st.text(st.sampled_from("a./~%\\ \n\x00é\ud800A-_"), max_size=12),
    st.text(st.sampled_from("a."), min_size=140, max_size=160),
    st.text(max_size=40),
)
NAME_CHARACTERS = set(string.ascii_letters + string.digits + "_.-~%")


@given(names)
@example("")
@example(".")
@example("..")
@example("...")
@example("../../etc/passwd")
@example(".tmp-1-x")
@example("é" * 200)
def test_names_are_safe(text):
    name = safe_name(text)
    assert set(name) <= NAME_CHARACTERS
    assert 0 < len(name) <= 150
    assert ".." not in name
    assert not name.startswith(".")


@given(names, names)
@example("a" * 200, safe_name("a" * 200))
@example(".", "%2E")
@example("", "%")
def test_different_texts_have_different_names(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)


@pytest.mark.parametrize("text", ["858af957-6779-4389-a2fd-2106e5bc546d", "requests", "requests-1", "a.b_c"])
def test_ordinary_names_stay(text):
    assert safe_name(text) == text


# --- Opening ----------------------------------------------------------------------------------------------------------


def test_a_new_store_has_a_secret_of_its_own(tmp_path):
    one, other = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    assert len(one.salt) == 32
    assert one.salt != other.salt
    assert stat.S_IMODE((one.root / "salt").stat().st_mode) == 0o600
    assert one.salt.hex() not in (one.root / "store.json").read_text()


def test_a_store_is_found_as_it_was_left(store):
    assert Store.open(store.root) == store


def test_settings_are_kept(tmp_path):
    Store.open(tmp_path, block_size=16, keep_billing_header=True)
    again = Store.open(tmp_path)
    assert (again.settings.block_size, again.settings.keep_billing_header) == (16, True)
    assert Store.open(tmp_path, block_size=16) == again


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"block_size": 128}, r"block_size is 64, not 128\. Use another --store"),
        ({"keep_billing_header": True}, "keep_billing_header is False, not True"),
    ],
)
def test_other_settings_are_refused(store, asked, message):
    with pytest.raises(StoreError, match=message):
        Store.open(store.root, **asked)


def change_settings(store, **changes):
    path = store.root / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3, "unheard_of": 1}, "made by a newer kv-pipeline"),
        ({"vocabulary_sha256": "0"}, "vocabulary_sha256 is 0, not 22392"),
        ({"hash_scheme": "other"}, "hash_scheme is other"),
        ({"block_size": "many"}, "is damaged"),
    ],
)
def test_stores_of_other_versions_are_refused(store, changes, message):
    change_settings(store, **changes)
    with pytest.raises(StoreError, match=message):
        Store.open(store.root)


def test_another_salt_is_refused(store):
    (store.root / "salt").write_bytes(b"x" * 32)
    with pytest.raises(StoreError, match=r"salt of the store .* is not the one it was made with"):
        Store.open(store.root)


def test_a_lost_salt_is_not_made_anew(store):
    (store.root / "salt").unlink()
    with pytest.raises(StoreError, match="has lost its salt"):
        Store.open(store.root)
    assert not (store.root / "salt").exists()


def test_a_salt_from_the_environment_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv(SALT_VARIABLE, "secret words")
    one, other = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    assert one.salt == other.salt
    for path in one.root.rglob("*"):
        assert path.name != "salt"
        assert not path.is_file() or b"secret words" not in path.read_bytes()
    monkeypatch.setenv(SALT_VARIABLE, "other words")
    with pytest.raises(StoreError, match="salt"):
        Store.open(one.root)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="can't be used: File exists"):
        Store.open(tmp_path / "store")


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(store):
    store.write(SMALL, "ada/s1", small(1, 2))
    store.write(SMALL, "bob/s1", small(3))
    assert store.partitions("small") == ["ada/s1", "bob/s1"]
    assert store.read(SMALL, ["bob/s1", "ada/s1", "nobody/s1"])["a"].to_list() == [3, 1, 2]
    store.remove("small", "ada/s1")
    store.remove("small", "ada/s1")
    assert store.partitions("small") == ["bob/s1"]


def test_missing_partitions_are_empty(store):
    assert store.read(SMALL, ["nobody"]).schema == polars_schema(SMALL)


def test_names_that_look_like_patterns(store):
    store.write(SMALL, "ada/%2A", small(1))
    store.write(SMALL, "ada=1/b", small(2))
    assert store.read(SMALL, ["ada/%2A"])["a"].to_list() == [1]
    assert store.read(SMALL, ["ada=1/b"]).columns == ["a"]


def test_a_damaged_file_is_named_and_moved_aside(store):
    store.write(SMALL, "p", small(1))
    store.path("small", "p").write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreError, match=r"p\.parquet is damaged\. It was moved to quarantine/small/p\.parquet"):
        store.read(SMALL, ["p"])
    assert store.partitions("small") == []
    assert store.quarantined() == [("small", "p")]
    store.write(SMALL, "p", small(1))
    assert store.quarantined() == []


def test_a_damaged_file_stays_where_it_is_while_another_process_writes(store):
    store.write(SMALL, "p", small(1))
    store.path("small", "p").write_bytes(b"PAR1 and no more")
    with (store.root / "writer.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="is set aside and rebuilt"):
            store.read(SMALL, ["p"])
    assert store.partitions("small") == ["p"]


GROWN = table(
    "small",
    "SMALL with columns that it did not have before.",
    ["a"],
    {
        "new": column(pl.String(), "Nullable.", nullable=True),
        **SMALL.columns,
        "known": column(pl.Boolean(), "Not nullable.", formerly=False),
    },
)


def test_files_of_earlier_versions_are_completed(store):
    store.write(SMALL, "old", small(1, 2))
    store.write(GROWN, "new", small(3).select(pl.lit("x").alias("new"), "a", pl.lit(value=True).alias("known")))
    assert store.read(GROWN, ["new", "old"]).rows() == [("x", 3, True), (None, 1, False), (None, 2, False)]
    assert store.read(GROWN, ["old"]).schema == polars_schema(GROWN)


def test_a_file_that_lacks_what_nobody_knows_or_has_what_nobody_knows_is_damaged(store):
    unknown = table("small", "Another.", ["a"], {**SMALL.columns, "b": column(pl.Int64(), "Not nullable.")})
    store.write(SMALL, "p", small(1))
    with pytest.raises(StoreError, match="is damaged"):
        store.read(unknown, ["p"])
    store.write(unknown, "q", small(1).with_columns(b=pl.lit(1, pl.Int64)))
    with pytest.raises(StoreError, match="is damaged"):
        store.read(SMALL, ["q"])


def test_tables_say_what_they_were_made_with(store):
    store.write(SMALL, "p", small(1))
    with store.write_stream(SMALL, "q") as append:
        append(small(1))
    for partition in "pq":
        metadata = pq.read_metadata(store.path("small", partition)).metadata
        described = json.loads(metadata[b"kv_pipeline"])
        assert (described["table"], described["block_size"]) == ("small", 64)
        assert described["hash_scheme"].startswith("blake2b")
        assert store.salt.hex() not in str(metadata)


def test_a_frame_that_breaks_its_model_leaves_the_old_one(store):
    store.write(SMALL, "p", small(1))
    before = store.path("small", "p").read_bytes()
    with pytest.raises(StoreError, match="Table small breaks its model"):
        store.write(SMALL, "p", small(2, 2))
    assert store.path("small", "p").read_bytes() == before


@pytest.mark.parametrize("is_first", [True, False], ids=["nothing before", "an older file"])
def test_a_crash_leaves_the_old_file_or_none(store, is_first):
    if not is_first:
        store.write(SMALL, "p", small(1))
    before = files(store)

    def crash():
        with store.write_stream(SMALL, "p") as append:
            append(small(7))
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        crash()
    assert files(store) == before
    assert store.read(SMALL, ["p"])["a"].to_list() == ([] if is_first else [1])


def test_a_crash_in_renaming_leaves_the_old_file(store, monkeypatch):
    store.write(SMALL, "p", small(1))
    before = files(store)

    def failing(descriptor):
        raise OSError("disk is gone")

    monkeypatch.setattr("kv_pipeline.atomic.os.fsync", failing)
    with pytest.raises(OSError, match="disk is gone"):
        store.write(SMALL, "p", small(2))
    assert files(store) == before
    assert store.read(SMALL, ["p"])["a"].to_list() == [1]


def test_streams_are_checked_and_empty_ones_are_tables(store):
    with store.write_stream(SMALL, "empty"):
        pass
    assert store.read(SMALL, ["empty"]).schema == polars_schema(SMALL)

    def broken():
        with store.write_stream(SMALL, "p") as append:
            append(small(1, 1))

    with pytest.raises(StoreError, match="breaks its model"):
        broken()
    assert store.partitions("small") == ["empty"]


def test_equal_frames_are_equal_files(store):
    store.write(SMALL, "p", small(1, 2))
    store.write(SMALL, "q", small(1, 2))
    assert store.path("small", "p").read_bytes() == store.path("small", "q").read_bytes()


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=4))
def test_the_quick_check_and_pandera_agree(values):
    frame = small(*values)
    try:
        judge(SMALL, frame)
    except StoreError:
        assert not surely_holds(SMALL, frame)
    else:
        assert surely_holds(SMALL, frame)


def test_some_columns_can_be_read_alone(store):
    store.write(SMALL, "p", small(1))
    assert store.read(PAIRS, ["p"], ["a"]).columns == store.read(PAIRS, [], ["a"]).columns == ["a"]
    assert store.read(SMALL, ["p"], ["a"])["a"].to_list() == [1]


@pytest.mark.parametrize("n_at_a_time", [1, 2, 1000])
def test_a_table_comes_in_pieces(store, monkeypatch, n_at_a_time):
    monkeypatch.setattr("kv_pipeline.store.PIECE_PARTITIONS", n_at_a_time)
    keys = ["p", "q", "missing", "r"]
    for first, key in enumerate(["p", "q", "r"]):
        store.write(SMALL, key, small(first, first + 10))
    pieces = list(store.pieces(SMALL, keys))
    assert pl.concat(pieces).equals(store.read(SMALL, keys))
    assert len(pieces) == -(-len(keys) // n_at_a_time)


@pytest.mark.parametrize("piece_bytes", [0, 1, 400, 10**6])
def test_large_files_come_some_rows_at_a_time(store, monkeypatch, piece_bytes):
    with store.write_stream(SMALL, "p") as append:
        append(small(*range(700)))
        append(small(*range(700, 1000)))
    store.write(SMALL, "q", small(1))
    monkeypatch.setattr("kv_pipeline.store.PIECE_BYTES", piece_bytes)
    pieces = list(store.pieces(SMALL, ["p", "q"]))
    assert pl.concat(pieces).equals(store.read(SMALL, ["p", "q"]))
    assert (len(pieces) > 2) == (piece_bytes < 1000)


def test_pieces_of_an_earlier_version_are_completed(store, monkeypatch):
    store.path("pairs", "p").parent.mkdir()
    small(1, 2).write_parquet(store.path("pairs", "p"))
    monkeypatch.setattr("kv_pipeline.store.PIECE_BYTES", 0)
    assert pl.concat(store.pieces(PAIRS, ["p"])).rows() == store.read(PAIRS, ["p"]).rows() == [(1, None), (2, None)]
    assert store.read(PAIRS, ["p"], ["b"]).rows() == [(None,), (None,)]


def test_damage_is_named_in_pieces(store, monkeypatch):
    store.write(SMALL, "p", small(1))
    store.path("small", "p").write_bytes(b"PAR1 no more")
    monkeypatch.setattr("kv_pipeline.store.PIECE_BYTES", 0)
    with pytest.raises(StoreError, match="damaged"):
        list(store.pieces(SMALL, ["p"]))


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=3), max_size=3))
def test_judging_pieces_is_judging_the_whole(pieces):
    frames = [small(*values) for values in pieces]
    whole = small(*(value for values in pieces for value in values))
    try:
        judge(SMALL, whole)
    except StoreError:
        with pytest.raises(StoreError, match="Table small breaks its model"):
            judge_all(SMALL, frames)
    else:
        assert judge_all(SMALL, frames) == whole.height


# --- Damage -----------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_any_byte_is_noticed(store, data):
    """Flipped bits, zeroed sectors and lost ends, however the file was written."""
    if data.draw(st.booleans()):
        store.write(SMALL, "p", small(*range(3000)))
    else:
        with store.write_stream(SMALL, "p") as append:
            append(small(*range(3000)))
    path = store.path("small", "p")
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["bit", "sector", "end"]))
    hurt = bytearray(content)
    if kind == "bit":
        hurt[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "sector":
        hurt[place : place + 512] = bytes(len(hurt[place : place + 512]))
    else:
        del hurt[place:]
    path.write_bytes(hurt)
    assert is_sound(path) == (bytes(hurt) == content)


def test_verify_moves_damaged_files_aside_and_reads_others_once(store, monkeypatch):
    for partition in "pq":
        store.write(SMALL, partition, small(1))
    assert verify(store.root) == []
    store.path("small", "q").write_bytes(b"PAR1 and no more")
    read = []
    monkeypatch.setattr("kv_pipeline.quarantine.is_sound", lambda path: read.append(path.stem) or is_sound(path))
    assert verify(store.root) == [store.path("small", "q")]
    assert verify(store.root) == []
    assert read == ["q"]
    verify(store.root, thoroughly=True)
    assert read == ["q", "p"]
    assert store.quarantined() == [("small", "q")]


def test_a_file_of_an_earlier_version_is_sound_if_it_can_be_read(store):
    path = store.path("small", "p")
    path.parent.mkdir()
    small(1, 2).write_parquet(path)
    assert is_sound(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert not is_sound(path)


def test_rot_that_leaves_the_times_alone_is_found_by_reading_all(store):
    store.write(SMALL, "p", small(*range(1000)))
    verify(store.root)
    path = store.path("small", "p")
    before, content = path.stat(), bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert verify(store.root) == []
    assert verify(store.root, thoroughly=True) == [path]


# --- Format versions and salts ----------------------------------------------------------------------------------------


def test_an_older_format_is_migrated(store):
    store.write(SMALL, "p", small(1))
    change_settings(store, format_version=1)
    again = Store.open(store.root)
    assert again == store
    assert json.loads((store.root / "store.json").read_text())["format_version"] == FORMAT_VERSION
    assert again.read(SMALL, ["p"])["a"].to_list() == [1]


def test_a_format_that_nobody_can_migrate_says_how_to_rebuild(store):
    change_settings(store, format_version=0)
    with pytest.raises(StoreError, match=r"has format 0.*kv-pipeline run --rebuild"):
        Store.open(store.root)


def test_replacing_the_salt_removes_what_the_old_one_is_in(store):
    store.write(SMALL, "p", small(1))
    store.write(TRANSCRIPT_ANSWERS, "ada", frame_of(TRANSCRIPT_ANSWERS, []))
    store.update_state("asset", {"p": "1"})
    replace_salt(store.root)
    again = Store.open(store.root)
    assert again.salt != store.salt
    assert (again.partitions("small"), again.state("asset")) == ([], {})
    assert again.partitions("transcript_answers") == ["ada"]
    with pytest.raises(StoreError, match="was replaced in the meantime"), store.writing():
        pass


@pytest.mark.parametrize("n_steps", range(1, 5))
def test_a_crash_while_replacing_the_salt_is_finished_by_the_next_who_opens(store, monkeypatch, n_steps):
    store.write(SMALL, "p", small(1))
    taken = []
    fsync = os.fsync

    def crashing(descriptor):
        taken.append(descriptor)
        if len(taken) > n_steps:
            raise RuntimeError("crash")
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("kv_pipeline.atomic.os.fsync", crashing)
        replace_salt(store.root)
    again = Store.open(store.root)
    is_old = n_steps == 1 and again.salt == store.salt
    assert is_old or (again.salt != store.salt and again.partitions("small") == [])
    assert not (store.root / "salt.next").exists()
    assert Store.open(store.root) == again


def test_a_salt_from_the_environment_must_be_a_new_one(tmp_path, monkeypatch):
    monkeypatch.setenv(SALT_VARIABLE, "one")
    store = Store.open(tmp_path)
    with pytest.raises(StoreError, match="still holds the store's salt"):
        replace_salt(tmp_path)
    assert Store.open(tmp_path) == store
    monkeypatch.setenv(SALT_VARIABLE, "two")
    replace_salt(tmp_path)
    assert Store.open(tmp_path).salt != store.salt


def test_emptying_keeps_the_salt_and_takes_the_settings_of_now(store):
    store.write(SMALL, "p", small(1))
    change_settings(store, format_version=0, hash_scheme="of long ago")
    empty_for_rebuild(store.root)
    assert Store.open(store.root) == store
    assert store.partitions("small") == []


# --- State and temporary files ----------------------------------------------------------------------------------------


def test_state_is_updated_and_removed(store):
    store.update_state("asset", {"b": "1", "a": "1"})
    store.update_state("asset", {"a": "2"}, removed=["b", "never there"])
    assert store.state("asset") == {"a": "2"}
    assert store.state("other") == {}


def test_damaged_state_is_no_state(store):
    store.update_state("asset", {"a": "1"})
    (store.root / "state" / "asset.json").write_text("{")
    assert store.state("asset") == {}


def test_state_does_not_depend_on_order(store):
    store.update_state("one", {"a": "1"})
    store.update_state("one", {"b": "2"})
    store.update_state("two", {"b": "2", "a": "1"})
    states = [(store.root / "state" / f"{name}.json").read_bytes() for name in ("one", "two")]
    assert states[0] == states[1]


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_sweep_removes_what_dead_processes_left(store):
    store.write(SMALL, "ada/p", small(1))
    folder = store.root / "small" / "ada"
    dead, own, odd = (folder / f".tmp-{who}-p.parquet" for who in (dead_process(), os.getpid(), "x"))
    alive = folder / f".tmp-{os.getppid()}-p.parquet"
    for path in (dead, own, odd, alive):
        path.write_bytes(b"half")
    assert store.partitions("small") == ["ada/p"]
    store.sweep()
    assert [path.exists() for path in (dead, own, odd, alive)] == [False, False, False, True]
    assert store.read(SMALL, ["ada/p"])["a"].to_list() == [1]


def test_one_writer_at_a_time(store):
    """Another process waits and says so; this one may nest."""
    code = (
        "import sys, pathlib\nfrom kv_pipeline.store import Store\n"
        "store = Store.open(pathlib.Path(sys.argv[1]))\n"
        "with store.writing(lambda: print('waiting', flush=True)):\n    print('in', flush=True)\n"
    )
    with store.writing(), store.writing():
        other = subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "waiting\n"
        reader = threading.Timer(0.05, lambda: None)
        reader.start()
        reader.join()
        assert other.poll() is None
    assert other.communicate(timeout=20)[0] == "in\n"
