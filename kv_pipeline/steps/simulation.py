"""Requests of a store through the *API* model: rows of its tables in, rows of cache_report out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from sys import intern
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.core.api_model import Bill, Prediction, Use
from kv_pipeline.core.api_rules import HISTORY, Rules, rules_at
from kv_pipeline.core.content_blocks import BILLING_HEADER
from kv_pipeline.core.explain import Explained, Step, explain, ratios_of
from kv_pipeline.core.lengths import LengthBook
from kv_pipeline.core.model_facts import facts_of
from kv_pipeline.core.prompts import ROOT, PromptTree, Request, Segment
from kv_pipeline.schemas.columns import frame_of
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS
from kv_pipeline.schemas.transcripts import TRANSCRIPT_ANSWERS
from kv_pipeline.steps.index import user_databases
from kv_pipeline.steps.prompts import Prompts, load_prompts
from kv_pipeline.store import Store

DEFAULT_MINIMUM_TOKENS: Final = 1024
"""Minimum of models that no table knows: the most common one. Source: `core.model_facts`."""

_ROW: Final = ["database_id", "row_id"]
_IN_ORDER: Final = ["requested_at_utc", "n_messages", "database_id", "row_id"]
_LISTS: Final = ("message_segments", "breakpoints")
_NEEDED: Final = (
    *_IN_ORDER, *_LISTS, "user_id", "agent", "conversation_id", "request_index", "agent_id", "is_after_compaction",
    "model", "tools_segment", "system_segment", "speed_id", "context_management_id", "thinking_id", "tool_choice_id",
    "n_breakpoints", "billing_header_id", "ttft_s", "completed_at_utc", "api_time_s", "input_tokens", "output_tokens",
    "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "has_applied_edits", "cache_miss_reason",
    "cache_missed_input_tokens", "noted_reason", "noted_tokens",
)  # fmt: skip
_BILL: Final = (
    "input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "has_applied_edits",
)  # fmt: skip
"""What `_bill` reads of a row."""
_ROWS_AT_A_TIME: Final = 1024
_BEGUN: Final = ("ok", "aborted")
"""Outcomes of requests that were answered at least in part, and so wrote to the cache."""


class ModelOptions(NamedTuple):
    """How the model runs where the documents leave a choice.

    Attributes:
        shares_prefixes: Whether everybody reads the tools and system prompts that anybody wrote.
        rules: The rules by day.
    """

    shares_prefixes: bool = False
    rules: tuple[Rules, ...] = HISTORY


AS_DOCUMENTED: Final = ModelOptions()


class Simulated(NamedTuple):
    """Requests through the model, in order of time.

    Attributes:
        rows: Their rows of RAW_REQUESTS, with their places in conversations, less the lists that grow with every turn.
        requests: The same in segment numbers.
        tree: Their prompts.
        steps: The requests as the model takes them.
        lengths: What all their bills say of prefixes' lengths.
        explained: What became of each; None for those in no agent.
    """

    rows: pl.DataFrame
    requests: list[Request]
    tree: PromptTree
    steps: list[Step]
    lengths: LengthBook
    explained: list[Explained | None]


def simulate(store: Store, users: Sequence[str], options: ModelOptions = AS_DOCUMENTED) -> Simulated:
    """Users' requests through one model, with or without the billing header in the prompt: bills decide."""
    prompts = load_prompts(store, [database for user_id in users for database in user_databases(store, user_id)])
    rows, requests = _taken_apart(_rows_of(store, users), prompts)
    segments = prompts.segments
    del prompts  # its numbers are in the requests by now
    strippers, minima = _strippers(rows), _minima(rows)

    def simulated(*, drops_headers: bool) -> Simulated:
        tree = PromptTree(segments, strippers, drops_headers=drops_headers)
        return _simulated(tree, rows, requests, minima, options)

    if not _has_headers(segments):
        return simulated(drops_headers=False)
    n_exact = _n_exact(simulated(drops_headers=True))  # the one is gone before the other is made: they are large
    found = simulated(drops_headers=False)
    if _n_exact(found) < n_exact:
        del found
        found = simulated(drops_headers=True)
    return found


def _rows_of(store: Store, users: Sequence[str]) -> pl.DataFrame:
    return pl.concat([_rows(store, user_id) for user_id in users]).sort(_IN_ORDER)


def _taken_apart(found: pl.DataFrame, prompts: Prompts) -> tuple[pl.DataFrame, list[Request]]:
    """Rows without the lists that grow with every turn, and the requests that these make, which share numbers."""
    parts = found.iter_slices(_ROWS_AT_A_TIME)
    requests = [prompts.request(row) for part in parts for row in part.iter_rows(named=True)]
    return found.drop(_LISTS), requests


def _has_headers(segments: Mapping[int, Segment]) -> bool:
    return any(segment.blocks and segment.blocks[0].kind == BILLING_HEADER for segment in segments.values())


def report_frame(simulated: Simulated) -> pl.DataFrame:
    """Frame of CACHE_REPORT, sorted by conversation."""
    return frame_of(CACHE_REPORT, _report_rows(simulated)).sort("conversation_id", "request_index")


def _simulated(
    tree: PromptTree,
    rows: pl.DataFrame,
    requests: list[Request],
    minima: Mapping[str, int],
    options: ModelOptions,
) -> Simulated:
    pairs = zip(requests, rows.iter_rows(named=True), strict=True)
    steps = [_step(tree, *pair, minima, options.rules) for pair in pairs]
    lengths = LengthBook(tree, ratios_of(tree, [step.use for step in steps]))
    explained = explain(tree, steps, lengths, shares_prefixes=options.shares_prefixes)
    return Simulated(rows, requests, tree, steps, lengths, explained)


def _n_exact(found: Simulated) -> int:
    """Requests whose billed read was predicted to the token."""
    return sum(
        explained is not None
        and step.use.bill is not None
        and explained.prediction.bill.read_tokens == step.use.bill.read_tokens
        for step, explained in zip(found.steps, found.explained, strict=True)
    )


def _rows(store: Store, user_id: str) -> pl.DataFrame:
    """Every request of a user that used the cache, with its place in a conversation if it has one."""
    databases = user_databases(store, user_id)
    requests = store.read(CONVERSATION_REQUESTS, [user_id])
    diagnoses = (
        store.read(TRANSCRIPT_ANSWERS, [user_id])
        .drop_nulls("cache_miss_reason")
        .unique("message_id", keep="first", maintain_order=True)
        .select("message_id", noted_reason="cache_miss_reason", noted_tokens="cache_missed_input_tokens")
    )
    traced = requests.join(diagnoses, on="message_id", how="left").select(
        "conversation_id", "request_index", "agent_id", "is_after_compaction", "database_id", "noted_reason",
        "noted_tokens", row_id="billed_row_id",
    )  # fmt: skip
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
        .with_columns(
            model=pl.coalesce("routed_model", "model"),
            n_messages=pl.col("message_segments").list.len(),
            n_breakpoints=pl.col("breakpoints").list.len(),
            user_id=pl.lit(user_id),
        )
        .select(_NEEDED)
    )


def _strippers(rows: pl.DataFrame) -> frozenset[str]:
    """Models that drop earlier turns' thinking."""
    models = rows["model"].unique()
    return frozenset(model for model in models if (facts := facts_of(model)) is not None and facts.strips_thinking)


def _minima(rows: pl.DataFrame) -> dict[str, int]:
    """Per model the shortest prefix that was ever billed as cached: what the API did outweighs what is documented."""
    minima: dict[str, int] = {}
    for row in rows.select("model", *_BILL).iter_rows(named=True):
        bill = _bill(row)
        if bill is not None and bill.cached_tokens:
            shortest = bill.read_tokens or bill.cached_tokens
            minima[row["model"]] = min(shortest, minima.get(row["model"], shortest))
    return minima


def _step(
    tree: PromptTree, request: Request, row: dict[str, Any], minima: Mapping[str, int], history: tuple[Rules, ...]
) -> Step:
    started_s = row["requested_at_utc"].timestamp()
    use = Use(
        prompt=tree.add(request),
        model=intern(row["model"]),
        owner=intern(row["user_id"]),
        agent=None if row["agent"] is None else tuple(map(intern, row["agent"].values())),
        started_s=started_s,
        began_s=_began_s(row, started_s),
        minimum_tokens=_minimum_tokens(row, minima),
        rules=rules_at(row["requested_at_utc"], history),
        bill=_bill(row),
    )
    return Step(request.settings, use, row["conversation_id"] is not None, bool(row["is_after_compaction"]))


def _began_s(row: Mapping[str, Any], started_s: float) -> float:
    """When the answer began; when it was complete, if that is all we know."""
    if row["ttft_s"] is not None:
        return started_s + float(row["ttft_s"])
    if row["completed_at_utc"] is not None:
        return max(started_s, float(row["completed_at_utc"].timestamp()))
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


def _report_rows(simulated: Simulated) -> Iterator[tuple[Any, ...]]:
    headers: dict[tuple[str, str], int | None] = {}
    rows = simulated.rows.iter_rows(named=True)
    for row, step, found in zip(rows, simulated.steps, simulated.explained, strict=True):
        if found is None:
            continue
        agent = (row["conversation_id"], row["agent_id"])
        has_churn = agent in headers and headers[agent] != row["billing_header_id"]
        headers[agent] = row["billing_header_id"]
        yield (
            *(row[name] for name in ("conversation_id", "request_index", "agent_id", "model", "requested_at_utc")),
            *_caching(simulated.tree, row, step.use, found),
            *predicted(found.prediction),
            found.prediction.read.is_billed,
            *_billed(row),
            row["output_tokens"] or 0,
            *_explained(step.use, found),
            has_churn,
            row["cache_miss_reason"] or row["noted_reason"],
            row["cache_missed_input_tokens"] if row["cache_miss_reason"] else row["noted_tokens"],
        )


def _caching(tree: PromptTree, row: Mapping[str, Any], use: Use, found: Explained) -> tuple[Any, ...]:
    uses_caching = found.prediction.cached != ROOT or (use.bill is not None and use.bill.cached_tokens > 0)
    return (row["n_breakpoints"], uses_caching, *tree.tokens(use.prompt.end))


def predicted(prediction: Prediction) -> tuple[int, int, int, int]:
    """Expected tokens in the order of the tables: read, 5-minute write, 1-hour write, uncached."""
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
