"""Structured logs: one line a partition on standard error, as `key=value` pairs; never content.

2026-11-21T03:00:04Z INFO partition asset=raw_requests partition=ada/requests duration_s=0.412 requests=118 notices=0
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Final

_LOGGER: Final = logging.getLogger("kv_pipeline")


def partition_done(asset: str, partition: str, duration_s: float, **counts: int) -> None:
    """A partition was made."""
    figures = "".join(f" {name}={value}" for name, value in counts.items())
    _LOGGER.info("partition asset=%s partition=%s duration_s=%.3f%s", asset, _word(partition), duration_s, figures)


def detail(event: str, **facts: float | int | str) -> None:
    """What is worth knowing only when looking closely."""
    _LOGGER.debug("%s%s", event, "".join(f" {name}={_word(str(value))}" for name, value in facts.items()))


@contextlib.contextmanager
def to_stderr(*, verbose: bool) -> Iterator[None]:
    """Print logs while the block runs: partitions where no progress is shown, details if asked for."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    before = _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.DEBUG if verbose else logging.WARNING if sys.stderr.isatty() else logging.INFO)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(before)


def _word(text: str) -> str:
    """One word: keys hold no spaces but those of ours, and a line must stay one."""
    return text.replace(" ", "_") if text.isprintable() else ascii(text).replace(" ", "_")
