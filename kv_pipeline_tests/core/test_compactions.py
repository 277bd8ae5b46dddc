from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.compactions import COMPACTION_COLUMNS, compactions
from kv_pipeline.core.context import context_growth
from kv_pipeline.core.money import cache_metrics, with_costs
from kv_pipeline.core.prices import PRICE_COLUMNS, ModelPrices, PriceTable
from kv_pipeline_tests.factories import at

MODEL, UNKNOWN = "claude-opus-4-5", "claude-opus-9"
USD = dict(zip(PRICE_COLUMNS, (5, 6.25, 10, 0.5, 25), strict=True))
TABLE = PriceTable([ModelPrices(model=MODEL, source="test", **USD)])


def frame_of(requests):
    """Requests of (agent, is after compaction, read, written, uncached, output, model), ten seconds apart."""
    seen, rows = {}, []
    for place, (agent, is_after, read, written, uncached, output, model) in enumerate(requests):
        seen[agent] = seen.get(agent, -1) + 1
        rows.append(("u/c", agent, seen[agent], at(10 * place), model, is_after, read, written, 0, uncached, output))
    schema = {
        "conversation_id": pl.String, "agent_id": pl.String, "agent_request_index": pl.UInt32,
        "requested_at_utc": pl.Datetime("us", "UTC"), "model": pl.String, "is_after_compaction": pl.Boolean,
        "cache_read_tokens": pl.Int64, "cache_write_5m_tokens": pl.Int64, "cache_write_1h_tokens": pl.Int64,
        "input_tokens": pl.Int64, "output_tokens": pl.Int64,
    }  # fmt: skip
    return context_growth(cache_metrics(with_costs(pl.DataFrame(rows, schema=schema, orient="row"), TABLE)))


def request(is_after=False, read=0, written=0, uncached=0, output=0, agent="main", model=MODEL):
    return (agent, is_after, read, written, uncached, output, model)


def side_of(at_s, prompt_tokens, cost_usd):
    return ("u/c", at(at_s), prompt_tokens, cost_usd)


def sides_of(*rows):
    schema = {"conversation_id": pl.String, "requested_at_utc": pl.Datetime("us", "UTC"), "prompt_tokens": pl.Int64,
              "cost_usd": pl.Float64}  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def oracle(requests):
    """(agent, index, before, after, rebuilt, later requests, carried, rebuild) of each compaction, by walking."""
    found = []
    for agent in sorted({row[0] for row in requests}):
        own = [row for row in requests if row[0] == agent]
        for index, (_, is_after, read, written, uncached, _, model) in enumerate(own):
            if not is_after or not index:
                continue
            _, _, *before_tokens, _ = own[index - 1]
            before, after = sum(before_tokens), read + written + uncached
            end = next((i for i in range(index + 1, len(own)) if own[i][1]), len(own))
            is_priced = all(row[6] == MODEL for row in own[index:end])
            carried = (before - after) * (end - index) * 0.5 / 1e6 if is_priced else None
            paid = written * 6.25 + uncached * 5
            rebuild = (paid - (written + uncached) * 0.5) / 1e6 if model == MODEL else None
            found.append((agent, index, before, after, written, end - index, carried, rebuild))
    return found


tokens = st.sampled_from([0, 1, 50, 1000, 90_000])
requests_of = st.lists(
    st.builds(
        request, is_after=st.booleans(), read=tokens, written=tokens, uncached=tokens, output=tokens,
        agent=st.sampled_from(["main", "a"]), model=st.sampled_from([MODEL, MODEL, MODEL, UNKNOWN]),
    ),
    max_size=12,
)  # fmt: skip


@given(requests_of)
def test_balance_by_walking(requests):
    found = compactions(frame_of(requests))
    assert tuple(found.columns) == COMPACTION_COLUMNS
    columns = ["agent_id", "agent_request_index", "tokens_before", "tokens_after", "rebuilt_tokens",
               "n_later_requests", "carried_usd", "rebuild_usd"]  # fmt: skip
    expected = oracle(requests)
    for values, by_hand in zip(found.select(columns).rows(), expected, strict=True):
        assert values[:6] == by_hand[:6]
        for value, hand in zip(values[6:], by_hand[6:], strict=True):
            assert value == (None if hand is None else pytest.approx(hand, abs=1e-12))


LONG = request(read=100_000, output=500)
AFTER = request(is_after=True, read=2_000, written=8_000)
LATER = request(read=10_000)


def balance(*requests, sides=None):
    return compactions(frame_of(requests), sides).to_dicts()[0]


def test_one_later_request_does_not_pay_and_ten_do():
    short, long = balance(LONG, AFTER), balance(LONG, AFTER, *[LATER] * 9)
    assert short["dropped_tokens"] == 90_500
    assert short["carried_usd"] == pytest.approx(90_500 * 0.5e-6)
    assert short["rebuild_usd"] == pytest.approx(8_000 * 5.75e-6)
    assert short["saved_usd"] == pytest.approx(-0.00075)
    assert (short["has_paid"], long["has_paid"]) == (False, True)


def test_the_last_long_request_in_between_wrote_the_summary():
    sides = sides_of(
        side_of(-1, 101_000, 7), side_of(2, 101_000, 9), side_of(5, 101_000, 0.25), side_of(6, 50, 8),
        side_of(11, 101_000, 6),
    )  # fmt: skip
    found, without = balance(LONG, AFTER, sides=sides), balance(LONG, AFTER)
    assert found["compaction_request_usd"] == 0.25
    assert without["compaction_request_usd"] is None
    assert found["saved_usd"] == pytest.approx(without["saved_usd"] - 0.25)


def test_requests_of_other_conversations_wrote_no_summary():
    sides = sides_of(side_of(5, 101_000, 0.25)).with_columns(conversation_id=pl.lit("u/other"))
    assert balance(LONG, AFTER, sides=sides)["compaction_request_usd"] is None


@pytest.mark.parametrize(("later_tokens", "is_forced"), [(109_500, False), (109_501, True)])
def test_forced_if_the_old_context_would_have_outgrown_the_window(later_tokens, is_forced):
    assert balance(LONG, AFTER, request(read=later_tokens))["is_forced"] is is_forced


def test_only_later_prompts_can_force_a_compaction():
    assert balance(request(read=150_000), AFTER, LATER)["is_forced"] is False


def test_unknown_model():
    requests = [request(*row[1:6], row[0], UNKNOWN) for row in (LONG, AFTER, LATER)]
    found = balance(*requests)
    assert found["dropped_tokens"] == 90_500
    assert [found[name] for name in ("carried_usd", "saved_usd", "has_paid", "is_forced")] == [None] * 4


def test_nothing_from_nothing():
    assert compactions(frame_of([])).height == 0
