"""The store: where tables live on disk, and how they get there whole or not at all.

    store.json             format version and the settings that every table depends on
    salt                   secret of the store, mode 0600
    session                exists while a process runs Dagster on the store, or after one was killed
    state/<asset>.json     fingerprint of the inputs that each partition was made from
    <table>/<partition>.parquet

Tables are written to a temporary file, synced and renamed, so a crash leaves the old file or the new one. State is
written after the tables: a crash between the two repeats work and changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pandera.errors
import pandera.polars as pa
import polars as pl
import pyarrow.parquet as pq

from kv_pipeline.core.hashing import DEFAULT_BLOCK_SIZE, HASH_SCHEME, salted_digest
from kv_pipeline.core.normalise import NORMALISATION
from kv_pipeline.core.tokenizer import TOKENIZER_NAME, VOCABULARY_SHA256
from kv_pipeline.errors import StoreError
from kv_pipeline.locks import alone, holding, lending, locked
from kv_pipeline.names import TEMPORARY
from kv_pipeline.processes import is_other_alive, this_process
from kv_pipeline.schemas.columns import completed, polars_schema
from kv_pipeline.schemas.quick import surely_holds

FORMAT_VERSION: Final = 1
SALT_VARIABLE: Final = "KV_PIPELINE_SALT"
SESSION_MARKER: Final = "session"
"""File that exists while a process runs Dagster on the store."""
WRITER_LOCK: Final = "writer.lock"
_SALT_BYTES: Final = 32
_ROW_GROUP_ROWS: Final = 65_536


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every table of a store depends on; fixed when the store is made.

    Attributes:
        block_size: Tokens a block.
        keep_billing_header: Whether billing headers are hashed as sent.
        salt_check: Digest that tells a wrong salt from the right one.
    """

    format_version: int = FORMAT_VERSION
    block_size: int = DEFAULT_BLOCK_SIZE
    keep_billing_header: bool = False
    hash_scheme: str = HASH_SCHEME
    normalisation: str = NORMALISATION
    tokenizer: str = TOKENIZER_NAME
    vocabulary_sha256: str = VOCABULARY_SHA256
    salt_check: str = ""


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        root: Its folder.
        settings: What its tables depend on.
        salt: Its secret.
    """

    root: Path
    settings: Settings
    salt: bytes

    @classmethod
    def open(cls, root: Path, *, block_size: int | None = None, keep_billing_header: bool | None = None) -> Store:
        """Open a store, making it if the folder has none.

        Args:
            root: Its folder.
            block_size: Tokens a block of a new store; of an existing one it must be this.
            keep_billing_header: Likewise.

        Raises:
            StoreError: It is of another format version, has other settings or another salt, or can't be written.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
            root = root.resolve()
            with locked(root / "lock"):
                settings = _read_settings(root)
                salt = _salt(root, is_new=settings is None)
                check = salted_digest(salt, b"kv_pipeline salt check").hex()
                if settings is None:
                    settings = Settings(
                        block_size=block_size or DEFAULT_BLOCK_SIZE,
                        keep_billing_header=bool(keep_billing_header),
                        salt_check=check,
                    )
                    _write_bytes(root / "store.json", msgspec.json.format(msgspec.json.encode(settings)))
        except OSError as error:
            raise StoreError(f"The store at {root} can't be used: {error.strerror}. Check the folder.") from error
        _check_settings(root, settings, check, block_size, keep_billing_header)
        return cls(root, settings, salt)

    def path(self, table: str, partition: str) -> Path:
        """File of a table's partition."""
        return self.root / table / f"{partition}.parquet"

    def write(self, model: pa.DataFrameSchema, partition: str, frame: pl.DataFrame) -> None:
        """Check a frame and put it into the store.

        Raises:
            StoreError: The frame breaks the table's model; the partition is as it was before.
        """
        self.write_many(model, [(partition, check(model, frame))])

    def write_many(self, model: pa.DataFrameSchema, partitions: Iterable[tuple[str, pl.DataFrame]]) -> None:
        """Put frames that `check` has passed into the store."""
        metadata = {"kv_pipeline": msgspec.json.encode(self._described(model)).decode()}
        for partition, frame in partitions:
            with self.replacing(self.path(model.name, partition)) as temporary:
                frame.write_parquet(temporary, compression="zstd", row_group_size=_ROW_GROUP_ROWS, metadata=metadata)

    def write_stream(self, model: pa.DataFrameSchema, partition: str) -> contextlib.AbstractContextManager[Appender]:
        """Put a table into the store piece by piece; it appears when the block ends without an error."""
        return _appending(self, model, partition)

    def read(self, model: pa.DataFrameSchema, partitions: Iterable[str]) -> pl.DataFrame:
        """Partitions of a table as one frame; missing ones count as empty.

        Files of earlier versions are completed: columns that are newer say what was so then, or nothing.

        Raises:
            StoreError: A file is damaged.
        """
        paths = [path for path in (self.path(model.name, p) for p in partitions) if path.exists()]
        if not paths:
            return pl.DataFrame(schema=polars_schema(model))
        try:
            return pl.read_parquet(paths, schema=polars_schema(model), hive_partitioning=False, glob=False)
        except (pl.exceptions.PolarsError, OSError):
            return pl.concat([_read_whole(model, path) for path in paths])

    def partitions(self, table: str) -> list[str]:
        """Sorted partition keys that a table has files for."""
        folder = self.root / table
        files = (p for p in folder.rglob("*.parquet") if not p.name.startswith(TEMPORARY))
        return sorted(str(path.relative_to(folder))[: -len(".parquet")] for path in files)

    def remove(self, table: str, partition: str) -> None:
        """Remove a partition's file, if there is one."""
        self.path(table, partition).unlink(missing_ok=True)

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
            _write_bytes(self.root / "state" / f"{asset}.json", msgspec.json.encode(dict(sorted(state.items()))))

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """A temporary path that becomes `path` when the block ends without an error."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{this_process()}-{path.name}")
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def writing(self, on_wait: Callable[[], None] | None = None) -> contextlib.AbstractContextManager[None]:
        """Hold the writer lock alone: nobody else changes anything. The system frees a dead process's lock.

        Args:
            on_wait: Called if another process has it, before waiting.
        """
        return holding(self.root / WRITER_LOCK, fcntl.LOCK_EX, on_wait)

    def sharing(self, on_wait: Callable[[], None] | None = None) -> contextlib.AbstractContextManager[None]:
        """Hold the writer lock with others: each works on partitions, and nobody changes what these are made of.

        Several may work on one partition, as when a run that was given up is still alive: both write the same bytes.

        Args:
            on_wait: Called if another process has it alone, before waiting.
        """
        return holding(self.root / WRITER_LOCK, fcntl.LOCK_SH, on_wait)

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

    def _described(self, model: pa.DataFrameSchema) -> dict[str, object]:
        return {"table": model.name, **msgspec.to_builtins(self.settings)}


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


@contextlib.contextmanager
def _appending(store: Store, model: pa.DataFrameSchema, partition: str) -> Iterator[Appender]:
    arrow_schema = pl.DataFrame(schema=polars_schema(model)).to_arrow().schema
    described = msgspec.json.encode(store._described(model))
    with (
        store.replacing(store.path(model.name, partition)) as temporary,
        pq.ParquetWriter(temporary, arrow_schema, compression="zstd") as writer,
    ):
        writer.add_key_value_metadata({"kv_pipeline": described.decode()})
        yield Appender(model, lambda frame: writer.write_table(frame.to_arrow()))


def _read_whole(model: pa.DataFrameSchema, path: Path) -> pl.DataFrame:
    """A file, which may be of an earlier version."""
    try:
        frame = completed(model, pl.read_parquet(path, hive_partitioning=False, glob=False))
        if frame is not None and frame.schema == polars_schema(model):
            return frame
        cause = None
    except (pl.exceptions.PolarsError, OSError) as error:
        cause = error
    raise StoreError(f"{path} is damaged. Delete it and run again: it is rebuilt.") from cause


def _read_settings(root: Path) -> Settings | None:
    try:
        content = (root / "store.json").read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(content, type=Settings)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{root / 'store.json'} is damaged. Restore it, or start a new store.") from error


def _check_settings(
    root: Path, found: Settings, salt_check: str, block_size: int | None, keep_billing_header: bool | None
) -> None:
    if found.format_version > FORMAT_VERSION:
        raise StoreError(f"The store at {root} was made by a newer kv-pipeline. Upgrade kv-pipeline to use it.")
    if found.salt_check != salt_check:
        raise StoreError(f"The salt of the store at {root} is not the one it was made with. Restore it.")
    current = Settings(
        block_size=block_size or found.block_size,
        keep_billing_header=found.keep_billing_header if keep_billing_header is None else keep_billing_header,
        salt_check=salt_check,
    )
    if found != current:
        old, new = msgspec.to_builtins(found), msgspec.to_builtins(current)
        names = ", ".join(f"{name} is {old[name]}, not {new[name]}" for name in old if old[name] != new[name])
        raise StoreError(f"The store at {root} has other settings: {names}. Use another --store for these.")


def _salt(root: Path, *, is_new: bool) -> bytes:
    from_environment = os.environ.get(SALT_VARIABLE)
    if from_environment:
        return hashlib.blake2b(from_environment.encode(), digest_size=_SALT_BYTES).digest()
    path = root / "salt"
    if not path.exists():
        if not is_new:
            raise StoreError(f"The store at {root} has lost its salt. Restore the file `salt` or {SALT_VARIABLE}.")
        _write_bytes(path, secrets.token_bytes(_SALT_BYTES))
    return path.read_bytes()


def _write_bytes(path: Path, content: bytes) -> None:
    """Atomically, readable by the owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{this_process()}-{path.name}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
        file.write(content)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
