"""Costs and contexts of invented traffic, against sums over the rows that were billed."""

from __future__ import annotations

from decimal import Decimal

import polars as pl
import pytest

from kv_pipeline.core.compactions import compactions
from kv_pipeline.core.money import cost_sums, unknown_models
from kv_pipeline.core.phases import phase_summary, with_phases
from kv_pipeline.core.prices import PRICE_COLUMNS, PriceTable
from kv_pipeline.demo import EXAMPLE, write_landing
from kv_pipeline.prices.loading import load_prices
from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.schemas.transcripts import TRANSCRIPT_COMPACTIONS
from kv_pipeline.steps.money import priced_requests, priced_unindexed
from kv_pipeline_tests.factories import bring_up_to_date, open_store

PRICES = load_prices()
BILLED = ("input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    inbox = tmp_path_factory.mktemp("landing")
    write_landing(inbox, size=EXAMPLE, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        made = open_store(tmp_path_factory.mktemp("store"), patch)
        bring_up_to_date(made, inbox)
        yield made


@pytest.fixture(scope="module")
def users(store):
    return store.partitions(CONVERSATIONS.name)


def row_of(store, database_id, row_id):
    raw = store.read(RAW_REQUESTS, [database_id])
    return raw.row(by_predicate=pl.col("row_id") == row_id, named=True)


def test_costs_are_those_of_the_rows_that_paid(store, users):
    for user in users:
        total = Decimal(0)
        for request in store.read(CONVERSATION_REQUESTS, [user]).iter_rows(named=True):
            billed = row_of(store, request["database_id"], request["billed_row_id"])
            answer = row_of(store, request["database_id"], request["answer_row_id"])
            if billed["input_tokens"] is None:
                continue
            tokens = [*(billed[name] for name in BILLED), answer["output_tokens"]]
            prices = PRICES.for_model(billed["model"], billed["requested_at_utc"].date(), sum(tokens[:4]))
            total += sum(n * Decimal(str(getattr(prices, p))) for n, p in zip(tokens, PRICE_COLUMNS, strict=True))
        costs = priced_requests(store, user, PRICES)
        assert total > 0
        assert cost_sums(costs)["cost_usd"].item() == pytest.approx(float(total) / 1e6)
        assert costs.height == store.read(TRACES, costs["conversation_id"].unique()).height


def test_a_request_without_a_price_is_named(store, users):
    costs = priced_requests(store, users[0], PriceTable([]))
    assert unknown_models(costs)["n_requests"].sum() == costs.height > 0
    assert cost_sums(costs)["cost_usd"].item() == 0


def test_compactions_are_those_of_the_transcripts(store, users):
    found = pl.concat(
        compactions(priced_requests(store, user, PRICES), priced_unindexed(store, user, PRICES)) for user in users
    )
    recorded = store.read(TRANSCRIPT_COMPACTIONS, users)
    assert found.height == recorded.height > 0
    assert found["tokens_before"].to_list() == pytest.approx(recorded["pre_tokens"].to_list(), rel=0.05)
    assert (found["dropped_tokens"] > 0).all()
    assert found["compaction_request_usd"].is_not_null().all()


def test_phases_hold_every_request(store, users):
    for user in users:
        costs = priced_requests(store, user, PRICES)
        summary = phase_summary(with_phases(costs, store.read(AGENTS, [user])))
        assert summary["n_requests"].sum() == costs.height
        assert summary["prompt_tokens"].sum() == costs["prompt_tokens"].sum()
        assert summary["shared_prefix_share"].is_between(0, 1).all()
        assert set(summary["phase"]) & {"main", "plan"}


def test_unindexed_requests_cost_as_well(store, users):
    for user in users:
        found = priced_unindexed(store, user, PRICES)
        reasons = store.read(UNINDEXED_REQUESTS, [user])
        assert set(found["row_id"]) <= set(reasons["row_id"])
        assert (found["cost_usd"] > 0).all()
        assert set(reasons["reason"]) - set(found["reason"]) <= {"failed_attempt"}
