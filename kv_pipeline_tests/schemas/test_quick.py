"""The quick check agrees with Pandera, which is asked whenever it is not sure."""

import pandera.errors
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.errors import StoreError
from kv_pipeline.schemas.columns import at_least, column, one_of, polars_schema, table
from kv_pipeline.schemas.dictionary import TABLES
from kv_pipeline.schemas.quick import surely_holds
from kv_pipeline.store import check

MODEL = table(
    "example",
    "An example.",
    unique=["key"],
    columns={
        "key": column(pl.Int64(), "Key."),
        "size": column(pl.UInt64(), "Size.", at_least(2), nullable=True),
        "kind": column(pl.String(), "Kind.", one_of(("a", "b"))),
    },
)
ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 4)),
        st.one_of(st.none(), st.integers(0, 4), st.just(2**64 - 1)),
        st.sampled_from(["a", "b", "c", None]),
    ),
    max_size=5,
)


def pandera_accepts(frame: pl.DataFrame) -> bool:
    try:
        MODEL.validate(frame)
    except pandera.errors.SchemaError:
        return False
    return True


@settings(max_examples=200, deadline=None)
@given(rows=ROWS)
def test_agrees_with_pandera(rows: list[tuple[int | None, int | None, str | None]]) -> None:
    frame = pl.DataFrame(rows, schema=polars_schema(MODEL), orient="row")
    assert surely_holds(MODEL, frame) == pandera_accepts(frame)


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"key": [1], "size": [2], "kind": ["a"]}),
        pl.DataFrame(schema=polars_schema(MODEL)).select("size", "key", "kind"),
        pl.DataFrame(schema=polars_schema(MODEL)).drop("kind"),
        pl.DataFrame(schema=polars_schema(MODEL)).with_columns(more=1),
    ],
    ids=["type", "order", "missing", "more"],
)
def test_other_columns_do_not_hold(frame: pl.DataFrame) -> None:
    assert not surely_holds(MODEL, frame)
    with pytest.raises(StoreError, match="example breaks its model"):
        check(MODEL, frame)


def test_error_names_column_and_reason_but_no_value() -> None:
    frame = pl.DataFrame([(1, 2, "secret")], schema=polars_schema(MODEL), orient="row")
    with pytest.raises(StoreError, match="kind") as raised:
        check(MODEL, frame)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("model", [model for models in TABLES.values() for model in models], ids=lambda m: m.name)
def test_every_table_can_be_checked_quickly(model: object) -> None:
    assert surely_holds(model, pl.DataFrame(schema=polars_schema(model)))  # type: ignore[arg-type]
