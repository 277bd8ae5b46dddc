"""Damaged files of a store: found by their pages' checksums, moved aside, counted.

    quarantine/<table>/<partition>.parquet   files that were damaged; nothing reads them
    verified.json                            file to size, time of change and inode when it was last found sound

A file that is missing is made again, so moving a damaged one aside is all that has to be done for that.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from kv_pipeline.atomic import sync, write_bytes
from kv_pipeline.names import TEMPORARY

QUARANTINE: Final = "quarantine"
_VERIFIED: Final = "verified.json"
_OTHER_FOLDERS: Final = frozenset({QUARANTINE, "state", "dagster"})
_SUFFIX: Final = ".parquet"

Stamp = tuple[int, int, int]


def is_sound(path: Path) -> bool:
    """Whether every page of a Parquet file is as it was written; a file without checksums, whether it can be read.

    Raises:
        OSError: The file can't be read at all, which says nothing about what is in it.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
    except pa.ArrowException:
        return False
    except OSError as error:
        if error.errno is not None:  # the system's; Arrow's own say that a checksum is wrong
            raise
        return False
    return True


def set_aside(root: Path, path: Path) -> Path:
    """Move a file of a store into quarantine, in place of one that is there already; returns where it is now."""
    place = root / QUARANTINE / path.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    path.replace(place)
    sync(place.parent)
    sync(path.parent)
    return place


def verify(root: Path, *, thoroughly: bool = False) -> list[Path]:
    """Set damaged files aside; returns which.

    Args:
        root: Folder of the store, whose writer lock is held.
        thoroughly: Read every file, also those that have not been touched since they were last found sound.
    """
    before = _verified(root)
    known = {} if thoroughly else before
    sound: dict[str, Stamp] = {}
    damaged = []
    for path in _tables(root):
        name, stamp = str(path.relative_to(root)), _stamp(path)
        if known.get(name) == stamp or is_sound(path):
            sound[name] = stamp
        else:
            set_aside(root, path)
            damaged.append(path)
    if sound != before:
        write_bytes(root / _VERIFIED, msgspec.json.encode(sound))
    return damaged


def quarantined(root: Path) -> list[tuple[str, str]]:
    """Table and partition of damaged files that have not been made again, sorted."""
    folder = root / QUARANTINE
    names = (path.relative_to(folder) for path in folder.rglob(f"*{_SUFFIX}"))
    lost = (name for name in names if not (root / name).exists())
    return sorted((name.parts[0], "/".join(name.parts[1:])[: -len(_SUFFIX)]) for name in lost)


def forget_quarantined(root: Path, wanted: Iterable[tuple[str, str]] | None = None) -> int:
    """Delete files in quarantine, all if none are named; returns how many."""
    folder = root / QUARANTINE
    paths = list(folder.rglob(f"*{_SUFFIX}"))
    if wanted is not None:
        named = {folder / table / f"{partition}{_SUFFIX}" for table, partition in wanted}
        paths = [path for path in paths if path in named]
    for path in paths:
        path.unlink()
    if wanted is None:
        shutil.rmtree(folder, ignore_errors=True)
    return len(paths)


def _tables(root: Path) -> Iterator[Path]:
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and folder.name not in _OTHER_FOLDERS:
            yield from sorted(p for p in folder.rglob(f"*{_SUFFIX}") if not p.name.startswith(TEMPORARY))


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _verified(root: Path) -> dict[str, Stamp]:
    try:
        return msgspec.json.decode((root / _VERIFIED).read_bytes(), type=dict[str, Stamp])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}
