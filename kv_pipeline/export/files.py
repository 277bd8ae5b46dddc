"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kv_pipeline.errors import UsageError
from kv_pipeline.export.options import FILE_NAMES, ExportOptions
from kv_pipeline.export.pieces import Json
from kv_pipeline.names import TEMPORARY


def target(out: Path, options: ExportOptions) -> Path:
    """The file to write for a format that puts everything into one: `out`, or one in it if it is a folder.

    A name without an ending is taken for a folder.
    """
    return out if out.suffix and not out.is_dir() else out / FILE_NAMES[options.format]


def make_folder(path: Path) -> None:
    """Make a folder, and those above it.

    Raises:
        UsageError: It can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends without an error.

    Raises:
        UsageError: The file can't be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} can't be written: {error.strerror}. Choose another --out.")


def write_json(path: Path, value: Json) -> None:
    """Write one JSON document."""
    with replacing(path) as temporary:
        temporary.write_bytes(msgspec.json.encode(value))
