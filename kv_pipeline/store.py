"""The store: where tables live on disk, and how they get there whole or not at all.

    store.json             format version and the settings that every table depends on
    salt                   secret of the store, mode 0600
    session                exists while a process runs Dagster on the store, or after one was killed
    state/<asset>.json     fingerprint of the inputs that each partition was made from
    quarantine/            damaged files, moved aside
    <table>/<partition>.parquet

Of a store in a bucket that folder is a working copy (`kv_pipeline/remote/`).

Tables are written to a temporary file, synced and renamed, so a crash leaves the old file or the new one. State is
written after the tables: a crash between the two repeats work and changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import pandera.errors
import pandera.polars as pa
import polars as pl
import pyarrow.parquet as pq

from kv_pipeline.atomic import locked, sync, write_bytes
from kv_pipeline.errors import StoreError
from kv_pipeline.locks import WRITER_LOCK, alone, holding, lending
from kv_pipeline.names import TEMPORARY
from kv_pipeline.processes import is_other_alive, this_process
from kv_pipeline.quarantine import QUARANTINE, UNSEALED, is_sound, quarantined, seal, set_aside, verify
from kv_pipeline.remote.folder import Folder, folder_of
from kv_pipeline.remote.url import Location
from kv_pipeline.schemas.columns import completed, polars_schema
from kv_pipeline.schemas.quick import surely_holds
from kv_pipeline.store_settings import Settings, is_to_be_changed, opened_settings, read_settings

SESSION_MARKER: Final = "session"
"""File that exists while a process runs Dagster on the store."""
_OTHER_FOLDERS: Final = frozenset({"state", "dagster", QUARANTINE})
_ROW_GROUP_ROWS: Final = 65_536
PIECE_BYTES: Final = 4 * 1024 * 1024
"""Of files as they lie on disk, read at a time where a table of any size is gone through; ten times that in memory."""
PIECE_PARTITIONS: Final = 256
_UNREADABLE: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What Polars raises for damaged files."""


class _BusyError(Exception):
    """Another process has the writer lock."""


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        root: Its folder.
        settings: What its tables depend on.
        salt: Its secret.
        folder: What that folder is: the store, or a working copy of it.
    """

    root: Path
    settings: Settings
    salt: bytes
    folder: Folder = field(compare=False)

    @classmethod
    def open(
        cls, location: Location, *, block_size: int | None = None, keep_billing_header: bool | None = None
    ) -> Store:
        """Open a store, making it if there is none.

        Args:
            location: Its folder, or its URL.
            block_size: Tokens a block of a new store; of an existing one it must be this.
            keep_billing_header: Likewise.

        Raises:
            StoreError: It is of a newer format, or one that can't be migrated; has other settings or another salt; or
                can't be written.
            UsageError: The URL's bucket does not exist, or the packages for URLs are not installed.
        """
        try:
            if isinstance(location, Path):
                location.mkdir(parents=True, exist_ok=True)
            folder = folder_of(location)
            folder.refresh()
            root = folder.root
            with contextlib.ExitStack() as stack:
                if folder.is_copy and is_to_be_changed(root):
                    stack.enter_context(changing(location))
                stack.enter_context(locked(root / "lock"))
                return cls(root, *opened_settings(root, block_size, keep_billing_header, folder.publish), folder)
        except OSError as error:
            raise StoreError(f"The store at {location} can't be used: {error.strerror}. Check the folder.") from error

    def path(self, table: str, partition: str) -> Path:
        """File of a table's partition."""
        return self.root / self._name(table, partition)

    def has(self, table: str, partition: str) -> bool:
        """Whether a partition is in the store."""
        return self.path(table, partition).exists() or self.folder.lacks(self._name(table, partition))

    def file(self, table: str, partition: str) -> Path:
        """File of a table's partition, to be read; it is missing if the store does not have it."""
        self.folder.fetch([self._name(table, partition)])
        return self.path(table, partition)

    def _name(self, table: str, partition: str) -> str:
        return f"{table}/{partition}.parquet"

    def _elsewhere(self, table: str) -> set[str]:
        """Partitions of a table that the store has, though not in this folder."""
        names = self.folder.unfetched(table)
        return {name.removeprefix(f"{table}/")[: -len(".parquet")] for name in names}

    def write(self, model: pa.DataFrameSchema, partition: str, frame: pl.DataFrame) -> None:
        """Check a frame and put it into the store.

        Raises:
            StoreError: The frame breaks the table's model; the partition is as it was before.
        """
        self.write_many(model, [(partition, check(model, frame))])

    def write_many(self, model: pa.DataFrameSchema, partitions: Iterable[tuple[str, pl.DataFrame]]) -> None:
        """Put frames that `check` has passed into the store."""
        metadata = {"kv_pipeline": msgspec.json.encode(self._described(model)).decode(), **UNSEALED}
        folders = set()
        for partition, frame in partitions:
            path, content = self.path(model.name, partition), io.BytesIO()
            frame.write_parquet(content, compression="zstd", row_group_size=_ROW_GROUP_ROWS, metadata=metadata)
            seal(content)
            with _renamed(path) as temporary:
                temporary.write_bytes(content.getbuffer())
            folders.add(path.parent)
        for folder in folders:
            sync(folder)

    def write_stream(self, model: pa.DataFrameSchema, partition: str) -> contextlib.AbstractContextManager[Appender]:
        """Put a table into the store piece by piece; it appears when the block ends without an error."""
        return _appending(self, model, partition)

    def read(
        self, model: pa.DataFrameSchema, partitions: Iterable[str], columns: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Partitions of a table as one frame; missing ones count as empty.

        Files of earlier versions are completed: columns that are newer say what was so then, or nothing.

        Args:
            model: The table.
            partitions: Their keys.
            columns: Only these; the others are not read.

        Raises:
            StoreError: A file is damaged.
        """
        schema = polars_schema(model)
        wanted = schema.names() if columns is None else list(columns)
        names = [self._name(model.name, partition) for partition in partitions]
        self.folder.fetch(names)
        paths = [path for path in map(self.root.joinpath, names) if path.exists()]
        if not paths:
            return pl.DataFrame(schema={name: schema[name] for name in wanted})
        some = None if columns is None else wanted
        try:
            return pl.read_parquet(paths, columns=some, schema=schema, hive_partitioning=False, glob=False)
        except (*_UNREADABLE, OSError):
            return pl.concat([self._read_whole(model, path).select(wanted) for path in paths])

    def pieces(self, model: pa.DataFrameSchema, partitions: Iterable[str]) -> Iterator[pl.DataFrame]:
        """Partitions of a table a part at a time, many small ones or some rows of a large one.

        What they take in memory does not grow with the table.

        Raises:
            StoreError: A file is damaged.
        """
        names = {partition: self._name(model.name, partition) for partition in partitions}
        self.folder.fetch(names.values())
        small: list[str] = []
        small_bytes = 0
        for partition, name in names.items():
            path = self.root / name
            n_bytes = path.stat().st_size if path.exists() else 0
            if n_bytes > PIECE_BYTES:
                yield from self._row_pieces(model, path, n_bytes)
                continue
            small.append(partition)
            small_bytes += n_bytes
            if small_bytes > PIECE_BYTES or len(small) == PIECE_PARTITIONS:
                yield self.read(model, small)
                small, small_bytes = [], 0
        if small:
            yield self.read(model, small)

    def _row_pieces(self, model: pa.DataFrameSchema, path: Path, n_bytes: int) -> Iterator[pl.DataFrame]:
        """Rows of a large file, some at a time."""
        rows = pl.scan_parquet(path, hive_partitioning=False, glob=False)
        try:
            if rows.collect_schema() != polars_schema(model):  # of an earlier version
                yield self._read_whole(model, path)
                return
            n_rows = rows.select(pl.len()).collect().item()
            n_at_a_time = max(1, n_rows * PIECE_BYTES // n_bytes)
            for first in range(0, n_rows, n_at_a_time):
                yield rows.slice(first, n_at_a_time).collect()
        except _UNREADABLE as error:
            raise self._damage(path) from error

    def select(
        self, model: pa.DataFrameSchema, partition: str, columns: Sequence[str], where: pl.Expr | None = None
    ) -> pl.DataFrame:
        """Some columns and rows of one partition; the rest of the file is not read.

        Raises:
            StoreError: The file is missing or damaged.
        """
        path = self.file(model.name, partition)
        found = pl.scan_parquet(path, glob=False)
        try:
            return (found if where is None else found.filter(where)).select(columns).collect()
        except FileNotFoundError as error:
            remedy = "Run again with its recording in the landing folder."
            raise StoreError(f"Table {model.name} of {partition} is no longer in the store. {remedy}") from error
        except _UNREADABLE as error:
            raise self._damage(path) from error

    def partitions(self, table: str) -> list[str]:
        """Sorted partition keys that a table has files for."""
        folder = self.root / table
        files = (p for p in folder.rglob("*.parquet") if not p.name.startswith(TEMPORARY))
        return sorted({str(path.relative_to(folder))[: -len(".parquet")] for path in files} | self._elsewhere(table))

    def tables(self) -> list[str]:
        """Sorted names of what has partitions here, whatever version made it."""
        here = {path.name for path in self.root.iterdir() if path.is_dir()}
        elsewhere = {name.partition("/")[0] for name in self.folder.unfetched("") if "/" in name}
        return sorted(name for name in here | elsewhere if name not in _OTHER_FOLDERS and not name.startswith("."))

    def remove(self, table: str, partition: str) -> None:
        """Remove a partition's file, if there is one."""
        self.folder.drop(self._name(table, partition))
        self.path(table, partition).unlink(missing_ok=True)

    def verify(self, *, thoroughly: bool = False) -> list[Path]:
        """Set damaged files aside; returns which. Call it holding the writer lock.

        Args:
            thoroughly: All files, also those that have not been touched since they were last found sound.
        """
        if thoroughly:
            self.folder.fetch_all()
        return verify(self.root, thoroughly=thoroughly, restore=self.folder.restore)

    def quarantined(self) -> list[tuple[str, str]]:
        """Table and partition of damaged files that have not been made again, sorted."""
        return [(table, partition) for table, partition in quarantined(self.root) if not self.has(table, partition)]

    def state(self, asset: str) -> dict[str, str]:
        """Partition key to fingerprint, as recorded when each was last written."""
        try:
            return msgspec.json.decode((self.root / "state" / f"{asset}.json").read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.MsgspecError):
            return {}  # nothing is known to be up to date, so everything is made again

    def update_state(self, asset: str, changed: Mapping[str, str], removed: Iterable[str] = ()) -> None:
        """Record fingerprints after their partitions were written."""
        with locked(self.root / "lock"):
            state = self.state(asset) | dict(changed)
            for partition in removed:
                state.pop(partition, None)
            write_bytes(self.root / "state" / f"{asset}.json", msgspec.json.encode(dict(sorted(state.items()))))
        self.folder.publish_if_due()

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """A temporary path that becomes `path` when the block ends without an error."""
        with _renamed(path) as temporary:
            yield temporary
        sync(path.parent)

    @contextlib.contextmanager
    def writing(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the writer lock alone: nobody else changes anything. The system frees a dead process's lock.

        Args:
            on_wait: Called if another process has it, before waiting.

        Raises:
            StoreError: While waiting the store was given another salt.
        """
        with holding(self.root / WRITER_LOCK, fcntl.LOCK_EX, on_wait), self.folder.writing(on_wait):
            self._check_salt()
            yield

    @contextlib.contextmanager
    def sharing(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the writer lock with others: each works on partitions, and nobody changes what these are made of.

        A store in a bucket is held alone all the same: who publishes has to know everything that was written.

        Several may work on one partition, as when a run that was given up is still alive: both write the same bytes.

        Args:
            on_wait: Called if another process has it alone, before waiting.

        Raises:
            StoreError: While waiting the store was given another salt.
        """
        if self.folder.is_copy:
            with self.writing(on_wait):
                yield
            return
        with holding(self.root / WRITER_LOCK, fcntl.LOCK_SH, on_wait):
            self._check_salt()
            yield

    def lending(self) -> contextlib.AbstractContextManager[None]:
        """Let others share the writer lock that this process holds alone; at the end, wait for them."""
        return lending(self.root / WRITER_LOCK)

    def alone(self) -> contextlib.AbstractContextManager[bool]:
        """Whether nobody else shares the writer lock that this process holds; if so, nobody does until the end."""
        return alone(self.root / WRITER_LOCK)

    @contextlib.contextmanager
    def working_on(self, table: str, partition: str) -> Iterator[None]:
        """Hold a partition's own lock: for what is made of files that may change between two readers."""
        name = hashlib.blake2b(f"{table}/{partition}".encode(), digest_size=8).hexdigest()
        path = self.root / "state" / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            yield

    def _check_salt(self) -> None:
        settings = read_settings(self.root)
        if settings is not None and settings.salt_check != self.settings.salt_check:
            raise StoreError(f"The salt of the store at {self.root} was replaced in the meantime. Run again.")

    def sweep(self) -> None:
        """Remove temporary files and folders of processes that were killed; call it while writing.

        Then no process of another machine is at work either, and those of this one are looked up.
        """
        for path in list(self.root.rglob(f"{TEMPORARY}*")):
            process = path.name.removeprefix(TEMPORARY).partition("-")[0]
            if is_other_alive(process):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _read_whole(self, model: pa.DataFrameSchema, path: Path) -> pl.DataFrame:
        """A file, which may be of an earlier version."""
        try:
            frame = completed(model, pl.read_parquet(path, hive_partitioning=False, glob=False))
        except _UNREADABLE as error:
            raise self._damage(path) from error
        except OSError as error:
            raise StoreError(f"{path} can't be read: {error.strerror}. Check its permissions.") from error
        if frame is None or frame.schema != polars_schema(model):
            raise StoreError(f"{path} is damaged, or of another version. Delete it and run again: it is rebuilt.")
        return frame

    def _damage(self, path: Path) -> StoreError:
        """What to tell of a file that can't be read, after moving it aside if nobody else is writing."""
        with contextlib.suppress(OSError):
            if not is_sound(path) and self.folder.restore(path) and is_sound(path):
                return StoreError(f"{path} was damaged. It was fetched again: repeat the command.")
        remedy = "Run `kv-pipeline run`: it is set aside and rebuilt."
        with contextlib.suppress(OSError, _BusyError), self.writing(_refuse_to_wait):
            if path.exists() and not is_sound(path):
                place = set_aside(self.root, path)
                remedy = f"It was moved to {place.relative_to(self.root)}. Run again: it is rebuilt."
        return StoreError(f"{path} is damaged. {remedy}")

    def _described(self, model: pa.DataFrameSchema) -> dict[str, object]:
        return {"table": model.name, **msgspec.to_builtins(self.settings)}


@contextlib.contextmanager
def changing(location: Location, on_wait: Callable[[], None] | None = None) -> Iterator[Folder]:
    """Hold the writer lock of a store, whatever its version; all its files are here. See `Store.writing`."""
    folder = folder_of(location)
    with holding(folder.root / WRITER_LOCK, fcntl.LOCK_EX, on_wait), folder.writing(on_wait):
        folder.fetch_all()
        yield folder


def is_store(location: Location) -> bool:
    """Whether there is a store, of any version.

    Raises:
        UsageError: The bucket of its URL does not exist.
    """
    folder = folder_of(location)
    folder.refresh()
    return (folder.root / "store.json").exists()


class Appender:
    """Appends checked frames to a Parquet file, a row group each."""

    def __init__(self, model: pa.DataFrameSchema, append: Callable[[pl.DataFrame], None]) -> None:
        self._model = model
        self._append = append

    def __call__(self, frame: pl.DataFrame) -> None:
        """Append a frame.

        Raises:
            StoreError: The frame breaks the table's model.
        """
        self._append(check(self._model, frame))


def check(model: pa.DataFrameSchema, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame, if it is what the model says.

    Raises:
        StoreError: As `judge`.
    """
    return frame if surely_holds(model, frame) else judge(model, frame)


def judge(model: pa.DataFrameSchema, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame, if Pandera finds that it is what the model says.

    Raises:
        StoreError: It is not; the message names column and reason, never values.
    """
    try:
        # Not lazy: pandera 0.35 builds its report of all failures row by row, and that fails for u64 columns.
        return model.validate(frame)
    except pandera.errors.SchemaError as error:
        where = getattr(error.schema, "name", None) or model.name
        reason = getattr(error.reason_code, "value", error.reason_code)
        raise StoreError(f"Table {model.name} breaks its model at {where}: {reason}.") from None


def judge_all(model: pa.DataFrameSchema, frames: Iterable[pl.DataFrame]) -> int:
    """Judge a table that comes in pieces.

    Returns:
        Number of rows.

    Raises:
        StoreError: As `judge`.
    """
    n_rows = 0
    keys = []
    for frame in frames:
        n_rows += judge(model, frame).height
        keys.append(frame.select(model.unique))
    if model.unique and len(keys) > 1 and pl.concat(keys).is_duplicated().any():  # within a piece none are
        raise StoreError(f"Table {model.name} breaks its model: {', '.join(model.unique)} are not unique.")
    return n_rows


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """As `Store.replacing`; what the folder says outlives a power cut only once that is synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{this_process()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _appending(store: Store, model: pa.DataFrameSchema, partition: str) -> Iterator[Appender]:
    arrow_schema = pl.DataFrame(schema=polars_schema(model)).to_arrow().schema
    described = msgspec.json.encode(store._described(model))
    with store.replacing(store.path(model.name, partition)) as temporary:
        with pq.ParquetWriter(temporary, arrow_schema, compression="zstd") as writer:
            writer.add_key_value_metadata({"kv_pipeline": described.decode(), **UNSEALED})
            yield Appender(model, lambda frame: writer.write_table(frame.to_arrow()))
        with temporary.open("r+b") as file:
            seal(file)


def _refuse_to_wait() -> None:
    raise _BusyError
