"""What the assets show of their tables: column schemas from the Pandera models, and row counts from the files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

import dagster as dg
import pandera.polars as pa
import polars as pl

from kv_pipeline.store import Store

_FEW_PARTITIONS: Final = 1_000
_TIMES_THE_RUN: Final = 10


def column_schema(model: pa.DataFrameSchema) -> dict[str, dg.TableSchema]:
    """A table's model as definition metadata."""
    columns = [
        dg.TableColumn(
            name=name,
            type=_type_name(str(column.dtype)),
            description=column.description,
            constraints=dg.TableColumnConstraints(
                nullable=column.nullable, other=[_constraint(check) for check in column.checks]
            ),
        )
        for name, column in model.columns.items()
    ]
    key = dg.TableConstraints(other=[f"key: {name}" for name in model.unique])
    return {"dagster/column_schema": dg.TableSchema(columns=columns, constraints=key)}


def row_counts(store: Store, model: pa.DataFrameSchema, keys: Sequence[str], n_rows: int) -> dict[str, int]:
    """Rows of the whole table, as the files' footers say; of the partition, if the run had one; partitions of the run.

    A run of many partitions reports once for all, so what it says holds for all of them. The whole table is left out
    where it is much larger than the run: a backfill in batches would read all footers in each.

    Args:
        store: The store.
        model: The table.
        keys: Partitions of the run.
        n_rows: Their rows.
    """
    of_partition = {"dagster/partition_row_count": n_rows} if len(keys) == 1 else {"rows_of_run": n_rows}
    partitions = store.partitions(model.name)
    is_here = not store.folder.unfetched(model.name)
    is_cheap = is_here and len(partitions) <= max(_FEW_PARTITIONS, _TIMES_THE_RUN * len(keys))
    of_table = {"dagster/row_count": _table_rows(store, model, partitions)} if is_cheap else {}
    return {**of_table, **of_partition, "partitions_of_run": len(keys)}


def notice_counts(notices: Counter[str]) -> dict[str, int | dict[str, int]]:
    """How many notices about the input there were; by reason, if there were any."""
    return {
        "notices": notices.total(),
        **({"notices_by_reason": dict(sorted(notices.items()))} if notices else {}),
    }


def _table_rows(store: Store, model: pa.DataFrameSchema, partitions: Sequence[str]) -> int:
    paths = [store.path(model.name, partition) for partition in partitions]
    if not paths:
        return 0
    return int(pl.scan_parquet(paths, hive_partitioning=False, glob=False).select(pl.len()).collect().item())


def _type_name(dtype: str) -> str:
    """A type's name without names of fields and units: beside a wide one Dagster cuts descriptions off."""
    return re.sub(r"time_(?:unit|zone)='(\w+)'", r"\1", re.sub(r"Struct\(\{.*\}\)", "Struct", dtype))


def _constraint(check: pa.Check) -> str:
    statistics = check.statistics or {}
    if "min_value" in statistics:
        return f"at least {statistics['min_value']}"
    if "allowed_values" in statistics:
        return "one of " + ", ".join(map(str, statistics["allowed_values"]))
    return str(check.error or check.name)
