"""How a table's model is declared, and what is derived from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pandera.polars as pa
import polars as pl
import pyarrow

UTC_TIME: Final = pl.Datetime("us", "UTC")


def column(
    dtype: pl.DataType | type[pl.DataType], description: str, *checks: pa.Check, nullable: bool = False
) -> pa.Column:
    """A column with its unit and meaning in one sentence."""
    return pa.Column(dtype, checks=list(checks), nullable=nullable, description=description)


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


def frame_of(model: pa.DataFrameSchema, rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """Rows in the model's column order as a frame of its types."""
    schema = pl.DataFrame(schema=polars_schema(model)).to_arrow().schema
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    # Arrow builds nested columns in C++, where Polars would make a series for every cell.
    arrays = [pyarrow.array(values, field.type) for field, values in zip(schema, columns, strict=True)]
    frame = pl.from_arrow(pyarrow.Table.from_arrays(arrays, schema=schema))
    return cast("pl.DataFrame", frame)


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
