"""Real traffic through all steps. Runs where KV_PIPELINE_CAPTURES names a folder that holds `fixed/` and `older/`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from kv_pipeline.core.compactions import compactions
from kv_pipeline.core.money import cost_sums, unknown_models
from kv_pipeline.export.exporter import export_traces
from kv_pipeline.export.options import ExportOptions, Format, Profile
from kv_pipeline.prices.loading import load_prices
from kv_pipeline.reports.summary import api_table, cache_report
from kv_pipeline.schemas.blocks import TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.schemas.transcripts import TRANSCRIPT_COMPACTIONS
from kv_pipeline.steps.money import priced_requests, priced_unindexed
from kv_pipeline_tests import oracle_traces
from kv_pipeline_tests.as_log import agents_compared, sessions_of, write_log
from kv_pipeline_tests.comparison import assert_user_as_defined, requests_by_agent
from kv_pipeline_tests.export import truth
from kv_pipeline_tests.factories import bring_up_to_date, open_store
from kv_pipeline_tests.recovery_truth import MIN_SAME_AGENT, hide_transcripts, places, same_agent, tree

VARIABLE = "KV_PIPELINE_CAPTURES"
CAPTURES = Path(os.environ.get(VARIABLE) or "captures are not here")

pytestmark = pytest.mark.skipif(
    not CAPTURES.is_dir(),
    reason=f"real captures are private: set {VARIABLE} to a folder with the landing users fixed/ and older/",
)


@pytest.fixture(scope="module", params=["fixed", "older"])
def user(request):
    return request.param


@pytest.fixture(scope="module")
def store(user, tmp_path_factory):
    inbox = tmp_path_factory.mktemp("inbox")
    shutil.copytree(CAPTURES / user, inbox / user)
    with pytest.MonkeyPatch.context() as patch:
        made = open_store(tmp_path_factory.mktemp("store"), patch)
        bring_up_to_date(made, inbox)
        yield made


def test_every_request_is_the_oracles(store, user, tmp_path):
    assert assert_user_as_defined(store, CAPTURES / user, tmp_path) == {"fixed": 137, "older": 95}[user]


def test_conversations_and_agents(store, user):
    known = store.read(CONVERSATIONS, [user])
    agents = store.read(AGENTS, [user]).filter((pl.col("agent_id") != "main") & (pl.col("n_requests") > 0))
    linked, others = agents.filter(pl.col("link") != "none"), agents.filter(pl.col("link") == "none")
    assert set(known["match_rate"]) == {1.0}
    assert linked["agent_id"].is_unique().all()
    assert (known.height, linked.height, others.height) == {"fixed": (3, 4, 0), "older": (2, 3, 6)}[user]
    assert int(linked["is_fork"].sum()) == {"fixed": 1, "older": 0}[user]
    assert set(others["subagent_type"]) <= {"warmup"}
    assert set(others["n_requests"]) <= {1}


def test_every_row_is_accounted_for(store, user):
    n_rows = store.read(RAW_REQUESTS, [f"{user}/requests"]).height
    traces = store.read(TRACES, store.partitions(TRACES.name)).height
    reasons = dict(store.read(UNINDEXED_REQUESTS, [user])["reason"].value_counts().iter_rows())
    assert n_rows == {"fixed": 142, "older": 306}[user]
    twins = traces if user == "older" else 0
    assert n_rows == traces + twins + sum(reasons.values())
    assert reasons.get("failed_attempt", 0) == {"fixed": 3, "older": 0}[user]
    assert "unknown" not in reasons


def test_billed_rate_is_that_of_the_rows_that_paid(store, user):
    report = store.read(VALIDATION_REPORT, store.partitions(VALIDATION_REPORT.name))
    rows = report.filter((pl.col("scope") == "agent") & (pl.col("lifetime") == "5m"))
    turns = oracle_traces.turns(CAPTURES / user)
    usages = [turn.billed.usage for turn in turns]
    reads = sum(usage["cache_read_input_tokens"] for usage in usages)
    prompts = reads + sum(usage["input_tokens"] + usage["cache_creation_input_tokens"] for usage in usages)
    assert (rows["billed_read_tokens"].sum(), rows["billed_prompt_tokens"].sum()) == (reads, prompts)
    if user == "older":
        replays = [turn.answer.usage for turn in turns]
        assert all(turn.answer.row_id != turn.billed.row_id for turn in turns)
        assert sum(usage["cache_read_input_tokens"] for usage in replays) > reads


@pytest.mark.parametrize("profile", list(Profile))
def test_exported_traces_hold_every_sub_agent_once(store, user, tmp_path, profile):
    result = export_traces(store, tmp_path, ExportOptions(profile=profile))
    traces = [json.loads(path.read_bytes()) for path in result.files]
    agents = [requests_by_agent(trace["requests"]) for trace in traces]
    n_subagents = sum(len(found) - 1 for found in agents)
    assert n_subagents == sum(trace["totals"]["subagent_count"] for trace in traces) == {"fixed": 4, "older": 9}[user]
    assert sum(len(own) for found in agents for own in found.values()) == result.n_requests


def test_every_request_has_a_price(store, user):
    costs = priced_requests(store, user, load_prices())
    assert unknown_models(costs).rows() == []
    sums = cost_sums(costs)
    assert sums["n_unpriced_requests"].item() == 0
    assert sums["savings_usd"].item() > sums["cost_usd"].item() > 0


def test_context_before_a_compaction_is_what_the_client_counted(store, user):
    prices = load_prices()
    found = compactions(priced_requests(store, user, prices), priced_unindexed(store, user, prices))
    recorded = store.read(TRANSCRIPT_COMPACTIONS, [user])
    assert found["tokens_before"].to_list() == recorded["pre_tokens"].to_list()
    assert found["compaction_request_usd"].is_not_null().all()
    assert found.height == {"fixed": 1, "older": 0}[user]


@pytest.mark.parametrize("has_headers", [True, False], ids=["with session headers", "content alone"])
def test_structure_recovered_without_transcripts(store, user, tmp_path, has_headers):
    """Every agent, its parent, its type, its answers, and compactions, as transcripts tell them."""
    with pytest.MonkeyPatch.context() as patch:
        recovered = open_store(tmp_path / "store", patch)
        hide_transcripts(CAPTURES / user, tmp_path / "inbox" / user, has_headers=has_headers)
        bring_up_to_date(recovered, tmp_path / "inbox")
    found = same_agent(store, recovered, user)
    assert min(found) >= MIN_SAME_AGENT
    assert tree(recovered, user) == tree(store, user)
    assert places(recovered, user) == places(store, user)


def test_structure_recovered_from_a_log(store, user, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        logged = open_store(tmp_path / "store", patch)
        log = tmp_path / "logs" / user / "requests.jsonl"
        write_log(log, CAPTURES / user / "requests.db", f"{user}/requests", sessions_of(store, user))
        bring_up_to_date(logged, tmp_path / "logs")
    compared = agents_compared(store, logged, user)
    main = compared.filter(pl.col("agent") == "main")
    assert (main["recovered"] == "main").all()
    assert main["n_requests"].to_list() == {"fixed": [54, 6, 26], "older": [23, 20]}[user]
    assert compared.null_count().sum_horizontal().item() == 0
    assert compared.select("session", "agent").is_unique().all()
    assert compared.select("session", "recovered").is_unique().all()


def test_the_api_model_predicts_the_bill(store, user):
    """Not exact where two agents start within the proxy's second, and where a prefix was never billed alone."""
    report = store.read(CACHE_REPORT, [user]).filter("uses_caching")
    exact = (report["predicted_read_tokens"] == report["billed_read_tokens"]).sum()
    assert (exact, report.height) == {"fixed": (137, 137), "older": (87, 89)}[user]
    assert abs(api_table(cache_report(store), [])["difference_points"].item()) < 0.2


def test_losses_have_a_cause(store, user):
    lost = store.read(CACHE_REPORT, [user]).filter(pl.col("lost_tokens") > 0)
    assert sorted(lost["cause"]) == {"fixed": ["compaction"], "older": ["history_rewritten"]}[user]


@pytest.mark.parametrize("kind", [Format(name) for name in truth.ASSERTIONS])
def test_every_format_holds_the_store(store, tmp_path, kind):
    result = export_traces(store, tmp_path, ExportOptions(format=kind, block_size=128))
    truth.ASSERTIONS[kind](result.files[0], truth.of_store(store), 128)
