from __future__ import annotations

import numpy as np
import pandera.polars as pa
import polars as pl
import pytest

from kv_pipeline.errors import StoreError
from kv_pipeline.schemas import blocks, columns, conversations, explanations, requests, transcripts
from kv_pipeline.schemas.columns import (
    GrowingFrame,
    at_least,
    column,
    frame_of,
    hash_lists,
    one_of,
    polars_schema,
    put_together,
    table,
)
from kv_pipeline.schemas.dictionary import TABLES
from kv_pipeline.store import check

DECLARED = {
    model.name
    for module in (requests, transcripts, conversations, blocks, explanations)
    for model in vars(module).values()
    if isinstance(model, pa.DataFrameSchema)
}
MODELS = [model for models in TABLES.values() for model in models]
SMALL = table(
    "small",
    "One row per thing.",
    unique=["a"],
    columns={
        "a": column(pl.UInt32(), "A number.", at_least(1)),
        "b": column(pl.String(), "A choice.", one_of(("x", "y")), nullable=True),
    },
)


@pytest.mark.parametrize("arrays", [[], [[]], [[], []], [[1, 2]], [[1], [2]], [[], [1]], [[2**64 - 1], [1, 2]]])
def test_lists_stay_lists_whatever_their_lengths(arrays):
    series = hash_lists([np.array(values, dtype=np.uint64) for values in arrays])
    assert series.dtype == pl.List(pl.UInt64)
    assert series.to_list() == arrays


def test_every_model_is_the_table_of_an_asset():
    assert sorted(model.name for model in MODELS) == sorted(DECLARED)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_models_are_complete(model):
    assert model.strict and model.ordered and not model.coerce
    assert model.description.endswith(".")
    assert set(model.unique or ()) <= set(model.columns)
    for name, declared in model.columns.items():
        assert declared.description.endswith("."), name
        assert not declared.coerce
    empty = frame_of(model, [])
    assert check(model, empty).schema == polars_schema(model)


@pytest.mark.parametrize("n_rows", [0, 1, 6, 7, 8, 14, 20])
def test_rows_make_the_same_frame_however_many_are_converted_at_a_time(monkeypatch, n_rows):
    monkeypatch.setattr(columns, "ROWS_AT_A_TIME", 7)
    rows = [(n + 1, "x" if n % 3 else None) for n in range(n_rows)]
    growing = GrowingFrame(SMALL)
    assert not growing
    for row in rows:
        growing.append(row)
    assert bool(growing) == bool(rows)
    assert growing.frame().equals(pl.DataFrame(rows, schema=polars_schema(SMALL), orient="row"))
    assert growing.frame().equals(frame_of(SMALL, iter(rows)))
    assert growing.frame().n_chunks() == 1


def small(*rows):
    return frame_of(SMALL, rows)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(small((0, "x")), id="range"),
        pytest.param(small((1, "z")), id="closed set"),
        pytest.param(small((1, "x"), (1, "y")), id="unique"),
        pytest.param(small((None, "x")), id="null"),
        pytest.param(small((1, "x")).with_columns(c=1), id="another column"),
        pytest.param(small((1, "x")).select("a"), id="missing column"),
        pytest.param(small((1, "x")).select("b", "a"), id="order"),
        pytest.param(small((1, "x")).cast({"a": pl.Int64}), id="type"),
    ],
)
def test_frames_that_break_the_model(frame):
    with pytest.raises(StoreError, match="Table small breaks its model"):
        check(SMALL, frame)


def test_a_message_names_no_value():
    with pytest.raises(StoreError) as caught:
        check(SMALL, small((1, "secret")))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_good_frame_passes_unchanged():
    frame = small((1, "x"), (2, None))
    assert check(SMALL, frame).equals(frame)


def test_columns_are_put_together_in_order():
    columns = [pl.Series("b", [1, 2]), pl.Series("spare", [0, 0]), pl.Series("a", ["x", None])]
    frame = put_together(pl.Schema({"a": pl.String(), "b": pl.Int64()}), columns)
    assert frame.equals(pl.DataFrame({"a": ["x", None], "b": [1, 2]}))
