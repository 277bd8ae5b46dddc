"""Real transcripts against what proxies recorded of the same traffic. Runs where KV_PIPELINE_CAPTURES says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kv_pipeline.schemas.blocks import TRACES, VALIDATION_REPORT
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.schemas.requests import RAW_REQUESTS, SEGMENTS
from kv_pipeline.store import Store
from kv_pipeline_tests import oracle_traces
from kv_pipeline_tests.factories import bring_up_to_date, open_store
from kv_pipeline_tests.test_captures import CAPTURES, VARIABLE

pytestmark = pytest.mark.skipif(
    not CAPTURES.is_dir(),
    reason=f"real captures are private: set {VARIABLE} to a folder with the landing users fixed/ and older/",
)
LOST_OF_TOOLS = ("defer_loading",)
LOST_OF_SCHEMAS = ("$schema", "additionalProperties")
"""Keys that the proxy's structs do not have. Of messages it loses `output_config`, of bodies all but seven keys."""


def made(tmp_path_factory: Any, user: str, source: Path) -> Store:
    inbox = tmp_path_factory.mktemp("inbox")
    shutil.copytree(source, inbox / user)
    with pytest.MonkeyPatch.context() as patch:
        store = open_store(tmp_path_factory.mktemp("store"), patch)
        bring_up_to_date(store, inbox)
        return store


@pytest.fixture(scope="module", params=["fixed", "older", "fixed, requests not recorded"])
def case(request, tmp_path_factory):
    """A capture, its store by the exact path, and one of its transcripts alone."""
    user = request.param.partition(",")[0]
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(CAPTURES / user / "projects", folder / "projects")
    if user != request.param:
        for path in folder.rglob("*.jsonl"):
            path.write_text("".join(map(without_request_records, path.read_text().splitlines(keepends=True))))
    exact = made(tmp_path_factory, user, CAPTURES / user)
    return request.param, exact, made(tmp_path_factory, user, folder)


def without_request_records(line: str) -> str:
    """A line as a client writes it that does not record requests."""
    record = json.loads(line)
    record.pop("requestRef", None)
    return "" if str(record["type"]).startswith("api-request") else json.dumps(record) + "\n"


def traced(store: Store) -> pl.DataFrame:
    """Requests with place, trace row and prediction, by message."""
    place = ["conversation_id", "request_index"]
    keys = store.partitions(TRACES.name)
    users = [key.partition("/")[0] for key in keys[:1]]
    predicted = store.read(VALIDATION_REPORT, keys).filter(scope="conversation", lifetime="5m")
    return (
        store.read(CONVERSATION_REQUESTS, users)
        .join(store.read(TRACES, keys).drop("agent_id", "agent_request_index", "turn_index"), on=place)
        .join(predicted.select(*place, "prompt_tokens", "hit_tokens"), on=place)
        .sort("message_id")
    )


def test_conversations_agents_and_turns_are_the_same(case):
    name, exact, alone = case
    columns = ["conversation_id", "agent_id", "agent_request_index", "turn_index", "message_id", "output_types",
               "output_tokens", "stop_reason"]  # fmt: skip
    assert traced(exact).select(columns).equals(traced(alone).select(columns))
    user = name.partition(",")[0]
    agents = [store.read(AGENTS, [user]) for store in (exact, alone)]
    assert agents[0].equals(agents[1])
    counts = store_counts(alone, user)
    assert counts == {"fixed": (127, 10), "older": (0, 95), "fixed, requests not recorded": (0, 137)}[name]


def store_counts(store: Store, user: str) -> tuple[int, int]:
    known = store.read(CONVERSATIONS, [user])
    assert set(known["match_rate"]) == {1.0}
    return int(known["n_rebuilt"].sum()), int(known["n_approximate"].sum())


def test_times_are_those_of_the_proxy_to_its_second(case):
    """Unrecorded requests are taken to be sent when all they hold was there, which a refused attempt delays."""
    name, exact, alone = case
    late = (traced(alone)["requested_at_utc"] - traced(exact)["requested_at_utc"]).dt.total_milliseconds()
    assert late.min() > (-1000 if name == "fixed" else -2000)
    assert late.max() < 1100


def test_predicted_rates_are_near_those_of_the_exact_path(case):
    name, exact, alone = case
    rates = [found["hit_tokens"].sum() / found["prompt_tokens"].sum() * 100 for found in (traced(exact), traced(alone))]
    assert abs(rates[1] - rates[0]) < {"fixed": 0.1, "older": 1.5, "fixed, requests not recorded": 1.0}[name]


def test_api_model_predicts_bills_from_rebuilt_requests(case):
    name, _, alone = case
    report = alone.read(CACHE_REPORT, [name.partition(",")[0]])
    share = (report["predicted_read_tokens"] == report["billed_read_tokens"]).mean()
    assert share >= {"fixed": 0.95, "older": 0.0, "fixed, requests not recorded": 0.4}[name]


def test_rebuilt_bodies_are_what_the_proxy_recorded_less_what_it_lost(case):
    name, _, alone = case
    if name != "fixed":
        assert alone.read(RAW_REQUESTS, alone.partitions(RAW_REQUESTS.name))["exactness"].unique().to_list() == [
            "approximate"
        ]
        return
    bodies = {turn.answer.message_id: turn.billed.body for turn in oracle_traces.turns(CAPTURES / "fixed")}
    (partition,) = alone.partitions(RAW_REQUESTS.name)
    texts = dict(alone.read(SEGMENTS, [partition]).select("segment_index", "text").iter_rows())
    rows = alone.read(RAW_REQUESTS, [partition]).filter(exactness="rebuilt")
    assert rows.height == 127
    columns = ("message_id", "tools_segment", "system_segment", "message_segments")
    for message_id, tools, system, messages in rows.select(columns).iter_rows():
        body = cleaned(bodies[message_id])
        assert [without(json.loads(texts[index]), ("output_config",)) for index in messages] == body["messages"]
        assert [as_proxied(tool) for tool in json.loads(texts[tools])] == body["tools"]
        assert json.loads(texts[system]) == body["system"][1:]  # the billing header is no part of the record


def as_proxied(tool: dict[str, Any]) -> dict[str, Any]:
    schema = {key: value for key, value in tool["input_schema"].items() if key not in LOST_OF_SCHEMAS}
    return {key: value for key, value in tool.items() if key not in LOST_OF_TOOLS} | {"input_schema": schema}


def cleaned(value: Any) -> Any:
    """JSON without what no segment keeps."""
    return without(value, ("cache_control", "signature"))


def without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value
