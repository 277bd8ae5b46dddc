"""How a table's model is declared, and what is derived from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pandera.polars as pa
import polars as pl
import pyarrow

UTC_TIME: Final = pl.Datetime("us", "UTC")
_FORMERLY: Final = "formerly"


def column(
    dtype: pl.DataType | type[pl.DataType],
    description: str,
    *checks: pa.Check,
    nullable: bool = False,
    formerly: str | bool | int | None = None,
) -> pa.Column:
    """A column with its unit and meaning in one sentence.

    Args:
        dtype: Its type.
        description: Its unit and meaning.
        checks: What its values must be.
        nullable: Whether there may be none.
        formerly: What all values were in tables that were written before there was this column.
    """
    metadata = {_FORMERLY: formerly}
    return pa.Column(dtype, checks=list(checks), nullable=nullable, description=description, metadata=metadata)


def table(name: str, description: str, unique: Sequence[str], columns: dict[str, pa.Column]) -> pa.DataFrameSchema:
    """A table's model: exactly these columns, in this order, nothing coerced."""
    return pa.DataFrameSchema(
        columns, name=name, description=description, unique=list(unique), strict=True, ordered=True
    )


def at_least(minimum: float) -> pa.Check:
    """Values not below a minimum."""
    return pa.Check.ge(minimum)


def one_of(values: Sequence[str]) -> pa.Check:
    """Values of a closed set."""
    return pa.Check.isin(list(values))


def polars_schema(model: pa.DataFrameSchema) -> pl.Schema:
    """Column names and types, for building and reading frames."""
    return pl.Schema({name: column.dtype.type for name, column in model.columns.items()})


ROWS_AT_A_TIME: Final = 4096
"""Rows held as Python's objects."""


def completed(model: pa.DataFrameSchema, frame: pl.DataFrame) -> pl.DataFrame | None:
    """A frame that an earlier version wrote, with the columns that the model has gained since.

    Returns:
        None if the frame lacks another column, or has one that the model does not know.
    """
    missing = {name: column for name, column in model.columns.items() if name not in frame.columns}
    formerly = {name: (column.metadata or {}).get(_FORMERLY) for name, column in missing.items()}
    if any(value is None and not missing[name].nullable for name, value in formerly.items()):
        return None
    schema = polars_schema(model)
    values = [pl.lit(value, schema[name]).alias(name) for name, value in formerly.items()]
    wanted = frame.with_columns(values)
    return wanted.select(schema.names()) if set(wanted.columns) == set(schema) else None


def frame_of(model: pa.DataFrameSchema, rows: Iterable[Sequence[Any]]) -> pl.DataFrame:
    """Rows in the model's column order as a frame of its types."""
    growing = GrowingFrame(model)
    for row in rows:
        growing.append(row)
    return growing.frame()


class GrowingFrame:
    """Rows that become a frame a few thousand at a time: as Python's objects they take ten times the memory.

    Args:
        model: What the rows are of; values in its column order.
    """

    def __init__(self, model: pa.DataFrameSchema) -> None:
        self._schema = polars_schema(model)
        others = {name: dtype for name, dtype in self._schema.items() if dtype != pl.String}
        self._arrow_schema = pl.DataFrame(schema=others).to_arrow().schema
        self._frames: list[pl.DataFrame] = []
        self._rows: list[Sequence[Any]] = []

    def __bool__(self) -> bool:
        return bool(self._frames or self._rows)

    def append(self, row: Sequence[Any]) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) == ROWS_AT_A_TIME:
            self._convert()

    def frame(self) -> pl.DataFrame:
        """All rows so far."""
        if self._rows or not self._frames:
            self._convert()
        return pl.concat(self._frames, rechunk=True) if len(self._frames) > 1 else self._frames[0]

    def _convert(self) -> None:
        """Polars makes columns of text, which Arrow copies again and again into memory that is new each time.

        Arrow makes the others, of which it builds the nested ones in C++, where Polars would make a series a cell.
        """
        columns = zip(*self._rows, strict=True) if self._rows else ((),) * len(self._schema)
        values = dict(zip(self._schema, columns, strict=True))
        pool = pyarrow.system_memory_pool()  # Arrow's own takes pages of 2 MB, which the system clears first
        arrays = [pyarrow.array(values[field.name], field.type, memory_pool=pool) for field in self._arrow_schema]
        others = cast("pl.DataFrame", pl.from_arrow(pyarrow.Table.from_arrays(arrays, schema=self._arrow_schema)))
        text = [pl.Series(name, values[name], dtype) for name, dtype in self._schema.items() if dtype == pl.String]
        self._frames.append(put_together(self._schema, [*others.get_columns(), *text]))
        self._rows = []


def put_together(schema: pl.Schema, columns: Iterable[pl.Series]) -> pl.DataFrame:
    """Columns as a frame, in the schema's order and without those that it does not have.

    A query would do the same: it takes a millisecond, which is long for a conversation.
    """
    named = {column.name: column for column in columns}
    return pl.DataFrame([named[name] for name in schema])


def hash_lists(arrays: Sequence[npt.NDArray[np.uint64]]) -> pl.Series:
    """One list of u64 a row; Arrow takes the numbers of all rows at once, where Polars would make a series a row."""
    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    numbers = b"".join(array.astype("<u8", copy=False).tobytes() for array in arrays)
    # As buffers and in a table: given arrays, Arrow and Polars first import modules that cost 20 and 40 ms.
    values = pyarrow.Array.from_buffers(pyarrow.uint64(), int(ends[-1]), [None, pyarrow.py_buffer(numbers)])
    offsets = pyarrow.py_buffer(ends.tobytes())
    rows = pyarrow.Array.from_buffers(
        pyarrow.large_list(pyarrow.uint64()), len(arrays), [None, offsets], children=[values]
    )
    return cast("pl.DataFrame", pl.from_arrow(pyarrow.table({"": rows}))).to_series()
