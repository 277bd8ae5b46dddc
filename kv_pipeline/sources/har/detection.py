"""Telling a HAR file by its beginning, where its name does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

SUFFIX: Final = ".har"
_BEGINNING: Final = re.compile(rb'^(?:\xef\xbb\xbf)?\s*\{\s*"log"\s*:\s*\{')


def is_har(path: Path) -> bool:
    """Whether a file has the suffix of HAR files, or begins like one.

    Raises:
        OSError: The file can't be read.
    """
    if path.suffix.lower() == SUFFIX:
        return True
    if not path.is_file():  # reading a pipe would wait for its writer
        return False
    with path.open("rb") as file:
        return _BEGINNING.match(file.read(4096)) is not None
