"""libCacheSim's oracleGeneral: a record of 24 bytes a block that a request refers to.

Source: libCacheSim `oracleGeneralBin.h` and `traceConv`: time (u32), object (u64), size (u32), the number of the next
record of the same object (i64), all little-endian. Records are counted from 1; -1 stands for never again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from kv_pipeline.export.numbering import Numbering
from kv_pipeline.export.placed import PlacedRequest

RECORD: Final = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next_vtime", "<i8")])
NEVER: Final = -1
_CHUNK_RECORDS: Final = 1 << 20

Records = npt.NDArray[np.void]


class OracleGeneralEncoder:
    """Makes records of requests in order of time, `next_vtime` not yet known.

    Args:
        numbering: Numbers of blocks.
    """

    def __init__(self, numbering: Numbering) -> None:
        self._numbering = numbering

    def __call__(self, request: PlacedRequest) -> bytes:
        """One record for each full block of the prompt, in prompt order."""
        numbers = request.block_numbers(self._numbering)
        records = np.empty(len(numbers), dtype=RECORD)
        records["time"] = int(round(request.at_s, 3))  # sums of times are a few ten-millionths off
        records["id"] = numbers
        records["size"] = request.trace.piece.block_size
        records["next_vtime"] = NEVER
        return records.tobytes()


def fill_next_uses(path: Path, n_ids: int, chunk_records: int = _CHUNK_RECORDS) -> None:
    """Fill in `next_vtime` of a file, a chunk at a time from its end.

    Args:
        path: File of records; changed in place.
        n_ids: Highest object number; numbers are dense, so one array tells where each was met last.
        chunk_records: Records held in memory.
    """
    if not path.stat().st_size:
        return
    records = np.memmap(path, dtype=RECORD, mode="r+")
    next_record = np.full(n_ids + 1, NEVER, dtype=np.int64)
    for start in reversed(range(0, len(records), chunk_records)):
        ids = np.array(records["id"][start : start + chunk_records], dtype=np.int64)
        records["next_vtime"][start : start + chunk_records] = _next_uses(ids, start + 1, next_record)
    records.flush()


def _next_uses(
    ids: npt.NDArray[np.int64], first_vtime: int, next_record: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Number of the record that uses each object next; `next_record` knows those behind the chunk, and learns it."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)
    following = np.append(order[1:], 0) + first_vtime
    uses = np.empty(len(ids), dtype=np.int64)
    uses[order] = np.where(is_last, next_record[ordered], following)
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    next_record[ordered[is_first]] = order[is_first] + first_vtime
    return uses


def read_records(path: Path) -> Records:
    """The records of a file, shape (records,), not loaded but mapped.

    Raises:
        ValueError: Its length is no multiple of a record's.
    """
    if not path.stat().st_size:
        return np.empty(0, dtype=RECORD)
    return np.memmap(path, dtype=RECORD, mode="r")
