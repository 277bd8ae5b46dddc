"""Damaged files of a store: found by the digest that each file holds of itself, moved aside, counted.

    quarantine/<table>/<partition>.parquet   files that were damaged; nothing reads them
    verified.json                            file to size, time of change and inode when it was last found sound

A file that is missing is made again, so moving a damaged one aside is all that has to be done for that.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from kv_pipeline.atomic import sync, write_bytes
from kv_pipeline.names import TEMPORARY

QUARANTINE: Final = "quarantine"
_VERIFIED: Final = "verified.json"
_OTHER_FOLDERS: Final = frozenset({QUARANTINE, "state", "dagster"})
_SUFFIX: Final = ".parquet"

_MARK: Final = b"kv_pipeline digest "
_DIGEST_LENGTH: Final = 32
_CHUNK_BYTES: Final = 1 << 20
_END: Final = b"PAR1"
UNSEALED: Final = {"kv_pipeline.digest": _MARK.decode() + "0" * _DIGEST_LENGTH}
"""Metadata that a file has to be written with before it can be sealed."""

Stamp = tuple[int, int, int]


def seal(file: BinaryIO) -> None:
    """Write a Parquet file's digest into it, in the place that `UNSEALED` keeps for it in its footer."""
    place = _place_of_digest(file)
    if place is None:
        raise ValueError("the file was not written with UNSEALED among its metadata")
    digest = _digest(file, place)
    file.seek(place)
    file.write(digest)


def is_sound(path: Path) -> bool:
    """Whether a file is, byte for byte, as it was sealed; of earlier versions' files, whether they can be read.

    Raises:
        OSError: The file can't be read, which says nothing about what is in it.
    """
    with path.open("rb") as file:
        place = _place_of_digest(file)
        if place is not None:
            file.seek(place)
            return file.read(_DIGEST_LENGTH) == _digest(file, place)
    return _is_readable(path)


def _place_of_digest(file: BinaryIO) -> int | None:
    """Offset of the digest; None if the file has none, or is cut off."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_END) - 4))
    tail = file.read()
    footer_bytes = int.from_bytes(tail[:4], "little")
    if tail[4:] != _END or footer_bytes > size:
        return None
    start = max(0, size - len(tail) - footer_bytes)
    file.seek(start)
    found = file.read(footer_bytes).rfind(_MARK)
    return None if found < 0 else start + found + len(_MARK)


def _digest(file: BinaryIO, place: int) -> bytes:
    """Hex digest of a file's bytes, with zeros for the digest."""
    digest = hashlib.blake2b(digest_size=_DIGEST_LENGTH // 2)
    file.seek(0)
    at = 0
    while chunk := file.read(_CHUNK_BYTES):
        inside = bytearray(chunk)
        for index in range(max(place, at), min(place + _DIGEST_LENGTH, at + len(chunk))):
            inside[index - at] = ord("0")
        digest.update(inside)
        at += len(chunk)
    return digest.hexdigest().encode()


def _is_readable(path: Path) -> bool:
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
    except pa.ArrowException:
        return False
    except OSError as error:
        if error.errno is not None:  # the system's; Arrow's own are about what is in the file
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


def verify(root: Path, *, thoroughly: bool = False, restore: Callable[[Path], bool] = lambda _: False) -> list[Path]:
    """Set damaged files aside; returns which.

    Args:
        root: Folder of the store, whose writer lock is held.
        thoroughly: Read every file, also those that have not been touched since they were last found sound.
        restore: Puts a sound copy of a damaged file in its place; says whether it did.
    """
    before = _verified(root)
    known = {} if thoroughly else before
    sound: dict[str, Stamp] = {}
    damaged = []
    for path in _tables(root):
        name, stamp = str(path.relative_to(root)), _stamp(path)
        if known.get(name) == stamp or is_sound(path):
            sound[name] = stamp
        elif restore(path) and is_sound(path):
            sound[name] = _stamp(path)
        else:
            set_aside(root, path)
            damaged.append(path)
    if sound != before:
        write_bytes(root / _VERIFIED, msgspec.json.encode(sound))
    return damaged


def quarantined(root: Path) -> list[tuple[str, str]]:
    """Table and partition of damaged files, sorted; they may have been made again."""
    folder = root / QUARANTINE
    names = (path.relative_to(folder) for path in folder.rglob(f"*{_SUFFIX}"))
    return sorted((name.parts[0], "/".join(name.parts[1:])[: -len(_SUFFIX)]) for name in names)


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


def forget_verified(root: Path) -> None:
    """Have every file verified again by the next run."""
    (root / _VERIFIED).unlink(missing_ok=True)


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
