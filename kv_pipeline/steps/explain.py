"""cache_report and what_if: one user's requests through the *API* model, and what they would be otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.core.api_model import Bill, Prediction, Use
from kv_pipeline.core.api_rules import rules_at
from kv_pipeline.core.explain import Explained, Step, explain, ratios_of
from kv_pipeline.core.lengths import LengthBook
from kv_pipeline.core.model_facts import facts_of
from kv_pipeline.core.prompts import ROOT, PromptTree
from kv_pipeline.core.scenarios import Scenario, what_if
from kv_pipeline.schemas.columns import frame_of
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.explanations import CACHE_REPORT, CONTENT_BLOCKS, WHAT_IF
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS
from kv_pipeline.steps.databases import CONTENT_STATE
from kv_pipeline.steps.index import INDEX_STATE, user_databases
from kv_pipeline.steps.prompts import Prompts, has_all_text, load_prompts
from kv_pipeline.steps.versions import CACHE_REPORT_VERSION, CONTENT_BLOCKS_VERSION
from kv_pipeline.store import Store

CACHE_REPORT_STATE: Final = "cache_report"
DEFAULT_MINIMUM_TOKENS: Final = 1024
"""Minimum of models that no table knows: the most common one. Source: `core.model_facts`."""

_ROW: Final = ["database_id", "row_id"]
_BEGUN: Final = ("ok", "aborted")
"""Outcomes of requests that were answered at least in part, and so wrote to the cache."""


class _Simulated(NamedTuple):
    """A user's requests through the model, in order of time."""

    tree: PromptTree
    steps: list[Step]
    lengths: LengthBook
    explained: list[Explained | None]


def explain_user(store: Store, user_id: str) -> pl.DataFrame:
    """Write a user's cache_report and what_if; returns the former."""
    fingerprint = report_fingerprint(store, user_id)
    databases = user_databases(store, user_id)
    rows = _rows(store, user_id, databases)
    prompts = load_prompts(store, databases)
    found = max((_simulated(prompts, user_id, rows, drops) for drops in (False, True)), key=_n_exact)
    report = frame_of(CACHE_REPORT, list(_report_rows(found, rows)))
    uses = [step.use for step in found.steps]
    scenarios = what_if([prompts.request(row) for row in rows], uses, found.tree, found.lengths)
    store.write(CACHE_REPORT, user_id, report.sort("conversation_id", "request_index"))
    store.write(WHAT_IF, user_id, frame_of(WHAT_IF, list(_what_if_rows(rows, scenarios))).sort(WHAT_IF.unique))
    store.update_state(CACHE_REPORT_STATE, {user_id: fingerprint})
    return report


def _simulated(prompts: Prompts, user_id: str, rows: list[dict[str, Any]], drops_headers: bool) -> _Simulated:
    """Through the model with or without the billing header in the prompt: not documented, so bills decide."""
    tree = PromptTree(prompts.segments, _strippers(rows), drops_headers=drops_headers)
    minima = _minima(rows)
    steps = [_step(tree, prompts, user_id, row, minima) for row in rows]
    lengths = LengthBook(tree, ratios_of(tree, [step.use for step in steps]))
    return _Simulated(tree, steps, lengths, explain(tree, steps, lengths))


def _n_exact(found: _Simulated) -> int:
    """Requests whose billed read was predicted to the token."""
    return sum(
        explained is not None
        and step.use.bill is not None
        and explained.prediction.bill.read_tokens == step.use.bill.read_tokens
        for step, explained in zip(found.steps, found.explained, strict=True)
    )


def stale_reports(store: Store) -> list[str]:
    """Users with conversations whose cache_report is out of date and can be made again, sorted."""
    state = store.state(CACHE_REPORT_STATE)
    there = set(store.partitions(CACHE_REPORT.name)) & set(store.partitions(WHAT_IF.name))
    return [
        user
        for user in store.partitions(CONVERSATIONS.name)
        if (user not in there or state.get(user) != report_fingerprint(store, user)) and _is_describable(store, user)
    ]


def _is_describable(store: Store, user_id: str) -> bool:
    """Whether prompts are known: described already, or their content is in the store."""
    return all(
        store.path(CONTENT_BLOCKS.name, key).exists() or has_all_text(store, key)
        for key in user_databases(store, user_id)
    )


def report_fingerprint(store: Store, user_id: str) -> str:
    """Fingerprint of what a user's report is made of: the index and what the databases say."""
    content = store.state(CONTENT_STATE)
    inputs = (store.state(INDEX_STATE).get(user_id), [(key, content[key]) for key in user_databases(store, user_id)])
    digest = hashlib.blake2b(repr(inputs).encode(), digest_size=16).hexdigest()
    return f"{CACHE_REPORT_VERSION}.{CONTENT_BLOCKS_VERSION}-{digest}"


def _rows(store: Store, user_id: str, databases: list[str]) -> list[dict[str, Any]]:
    """Every request that used the cache, with its place in a conversation if it has one, in order of time."""
    requests = store.read(CONVERSATION_REQUESTS, [user_id])
    traced = requests.select(
        "conversation_id", "request_index", "agent_id", "is_after_compaction", "database_id", row_id="billed_row_id"
    )
    agents = (
        store.read(MESSAGE_INDEX, databases)
        .select(*_ROW, "billed_row_id")
        .join(traced, left_on=["database_id", "billed_row_id"], right_on=_ROW)
        .select(*_ROW, agent=pl.struct("conversation_id", "agent_id"))
    )
    copies = store.read(UNINDEXED_REQUESTS, [user_id]).filter(pl.col("reason") == "duplicate")
    return (
        store.read(RAW_REQUESTS, databases)
        .filter(pl.col("outcome").is_in(_BEGUN))
        .join(copies, on=_ROW, how="anti")
        .join(traced, on=_ROW, how="left")
        .join(agents, on=_ROW, how="left")
        .with_columns(model=pl.coalesce("routed_model", "model"), n_messages=pl.col("message_segments").list.len())
        .sort("requested_at_utc", "n_messages", *_ROW)
        .to_dicts()
    )


def _strippers(rows: list[dict[str, Any]]) -> frozenset[str]:
    """Models that drop earlier turns' thinking."""
    models = {row["model"] for row in rows}
    return frozenset(model for model in models if (facts := facts_of(model)) is not None and facts.strips_thinking)


def _minima(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Per model the shortest prefix that was ever billed as cached: what the API did outweighs what is documented."""
    minima: dict[str, int] = {}
    for row in rows:
        bill = _bill(row)
        if bill is not None and bill.cached_tokens:
            shortest = bill.read_tokens or bill.cached_tokens
            minima[row["model"]] = min(shortest, minima.get(row["model"], shortest))
    return minima


def _step(tree: PromptTree, prompts: Prompts, user_id: str, row: dict[str, Any], minima: Mapping[str, int]) -> Step:
    request = prompts.request(row)
    started_s = _seconds(row["requested_at_utc"])
    use = Use(
        prompt=tree.add(request),
        model=row["model"],
        owner=user_id,
        agent=None if row["agent"] is None else tuple(row["agent"].values()),
        started_s=started_s,
        began_s=_began_s(row, started_s),
        minimum_tokens=_minimum_tokens(row, minima),
        rules=rules_at(row["requested_at_utc"]),
        bill=_bill(row),
    )
    return Step(request.settings, use, row["conversation_id"] is not None, bool(row["is_after_compaction"]))


def _seconds(time_utc: datetime) -> float:
    return (time_utc - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


def _began_s(row: Mapping[str, Any], started_s: float) -> float:
    """When the answer began; when it was complete, if that is all we know."""
    if row["ttft_s"] is not None:
        return started_s + float(row["ttft_s"])
    if row["completed_at_utc"] is not None:
        return max(started_s, _seconds(row["completed_at_utc"]))
    return started_s + float(row["api_time_s"] or 0.0)


def _minimum_tokens(row: Mapping[str, Any], minima: Mapping[str, int]) -> int:
    """As documented for the model on that day, or less if less was cached."""
    facts = facts_of(row["model"], row["requested_at_utc"].date())
    documented = DEFAULT_MINIMUM_TOKENS if facts is None else facts.minimum_cacheable_tokens
    return min(documented, minima.get(row["model"], documented))


def _bill(row: Mapping[str, Any]) -> Bill | None:
    """What was billed; an answer whose context the API edited says nothing about the prompt that was sent."""
    if row["input_tokens"] is None or row["has_applied_edits"]:
        return None
    return Bill(
        *(int(row[f"{kind}_tokens"] or 0) for kind in ("input", "cache_read", "cache_write_5m", "cache_write_1h"))
    )


def _report_rows(simulated: _Simulated, rows: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    headers: dict[tuple[str, str], int | None] = {}
    for row, step, found in zip(rows, simulated.steps, simulated.explained, strict=True):
        if found is None:
            continue
        agent = (row["conversation_id"], row["agent_id"])
        has_churn = agent in headers and headers[agent] != row["billing_header_id"]
        headers[agent] = row["billing_header_id"]
        yield (
            *(row[name] for name in ("conversation_id", "request_index", "agent_id", "model", "requested_at_utc")),
            *_caching(simulated.tree, row, step.use, found),
            *_predicted(found.prediction),
            found.prediction.read.is_billed,
            *_billed(row),
            row["output_tokens"] or 0,
            *_explained(step.use, found),
            has_churn,
            row["cache_miss_reason"],
            row["cache_missed_input_tokens"],
        )


def _caching(tree: PromptTree, row: Mapping[str, Any], use: Use, found: Explained) -> tuple[Any, ...]:
    uses_caching = found.prediction.cached != ROOT or (use.bill is not None and use.bill.cached_tokens > 0)
    return (len(row["breakpoints"]), uses_caching, *tree.tokens[use.prompt.end])


def _predicted(prediction: Prediction) -> tuple[int, int, int, int]:
    bill = prediction.bill
    return (bill.read_tokens, bill.write_5m_tokens, bill.write_1h_tokens, bill.input_tokens)


def _billed(row: Mapping[str, Any]) -> tuple[int | None, ...]:
    return tuple(
        row[name] for name in ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "input_tokens")
    )


def _explained(use: Use, found: Explained) -> tuple[Any, ...]:
    loss, divergence, before = found.loss, found.situation.divergence, found.predecessor
    named = (None, None, None) if divergence is None else divergence
    gap_s = None if before is None else use.started_s - before.use.started_s
    marks = () if before is None else before.use.prompt.marks
    return (loss.new_tokens, loss.lost_tokens, loss.cause, *named, gap_s, marks[-1].ttl if marks else None)


def _what_if_rows(
    rows: list[dict[str, Any]], scenarios: Mapping[Scenario, list[Prediction]]
) -> Iterator[tuple[Any, ...]]:
    for scenario, predictions in scenarios.items():
        for row, prediction in zip(rows, predictions, strict=True):
            if row["conversation_id"] is not None:
                names = ("conversation_id", "request_index", "model")
                yield (*(row[name] for name in names), scenario, *_predicted(prediction))
