"""Prices of genai-prices, against that package's own calculator and the shipped supplement."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime

import genai_prices
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.model_facts import CHECKED_ON, facts_of
from kv_pipeline.core.money import with_costs
from kv_pipeline.core.prices import PRICE_COLUMNS
from kv_pipeline.prices.files import SUPPLEMENT, file_prices
from kv_pipeline.prices.loading import load_prices
from kv_pipeline.prices.published import published_prices

PUBLISHED, SHIPPED = published_prices(), file_prices(SUPPLEMENT)
ONLY_IN_THE_SUPPLEMENT = {"claude-mythos-5", "claude-mythos-5-1"}
DIFFERENCES: dict[tuple[str, int], str] = {}
"""(model, prompt tokens) where the two disagree on purpose, with the reason. None in genai-prices 0.2.3."""
LENGTHS = (0, 100_001, 200_001)
WITHOUT_FACTS = {"claude-fable-5-2", "claude-mythos-5-2"}
"""Their least cacheable length is not documented where we looked, so they have prices but no facts."""


def usd(table, model, tokens):
    row = table.for_model(model, CHECKED_ON, tokens)
    return [getattr(row, name) for name in PRICE_COLUMNS]


def test_supplement_and_package_agree_where_both_know_a_model():
    both = SHIPPED.models & PUBLISHED.models
    assert SHIPPED.models - both == ONLY_IN_THE_SUPPLEMENT
    cases = [(model, tokens) for model in sorted(both) for tokens in LENGTHS if not tiered_past_a_window(model, tokens)]
    found = {case for case in cases if usd(SHIPPED, *case) != usd(PUBLISHED, *case)}
    assert found == set(DIFFERENCES)
    assert len(both) > 15


def tiered_past_a_window(model, tokens):
    """Such requests now fail, so the pages list no price; the package keeps that of the former beta."""
    facts = facts_of(model)
    return facts is not None and tokens > facts.context_window_tokens


def test_context_windows_are_those_of_the_facts():
    windows = {row.model: row.context_window_tokens for row in PUBLISHED}
    facts = {model: facts_of(model) for model in windows}
    known = {model: found.context_window_tokens for model, found in facts.items() if found}
    assert {model: windows[model] for model in known} == known
    old = {model for model in windows if model.endswith(("-3", "-3-5", "-3-7"))}
    assert windows.keys() - known.keys() - old == WITHOUT_FACTS


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(PUBLISHED.models - {"claude-haiku-3-5", "claude-sonnet-3-5", "claude-sonnet-3-7"})),
    st.dates(date(2025, 6, 1), date(2026, 12, 31)),
    st.lists(st.sampled_from([0, 1, 999, 50_000, 100_000, 200_000, 10**6]), min_size=5, max_size=5),
)
def test_costs_are_those_of_the_packages_calculator(model, day, tokens):
    uncached, write_5m, write_1h, read, output = tokens
    at = datetime(day.year, day.month, day.day, 23, 59, tzinfo=UTC)
    frame = pl.DataFrame(
        {
            "model": [model], "requested_at_utc": [at], "input_tokens": [uncached], "cache_read_tokens": [read],
            "cache_write_5m_tokens": [write_5m], "cache_write_1h_tokens": [write_1h], "output_tokens": [output],
        }
    )  # fmt: skip
    usage = genai_prices.Usage(
        input_tokens=uncached + write_5m + write_1h + read, output_tokens=output, cache_read_tokens=read,
        cache_write_tokens=write_5m + write_1h, cache_write_5m_tokens=write_5m, cache_write_1h_tokens=write_1h,
    )  # fmt: skip
    name = {"claude-haiku-3": "claude-3-haiku", "claude-opus-3": "claude-3-opus", "claude-sonnet-3": "claude-3-sonnet"}
    theirs = genai_prices.calc_price(
        usage, name.get(model, model), provider_id="anthropic", genai_request_timestamp=at
    ).total_price
    assert with_costs(frame, load_prices())["cost_usd"].item() == pytest.approx(float(theirs), rel=1e-12, abs=1e-15)


WATCHED = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
        raise SystemExit("network: " + event)
sys.addaudithook(refuse)
"""


def run(code):
    return subprocess.run([sys.executable, "-c", WATCHED + code], capture_output=True, text=True, check=False)


def test_prices_need_no_network_and_start_no_thread():
    done = run(
        "import threading\n"
        "from kv_pipeline.prices.loading import load_prices\n"
        "print(load_prices().for_model('claude-opus-4-5-20251101').read_usd_per_mtok, threading.active_count())"
    )
    assert done.stdout.split() == ["0.5", "1"], done.stderr


def test_network_would_be_noticed():
    done = run("import socket\nsocket.create_connection(('127.0.0.1', 9))")
    assert "network: " in done.stderr
