"""Requests of a store through the *API* model: rows of its tables in, rows of cache_report out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from sys import intern
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.core.api_model import Bill, Prediction, Use
from kv_pipeline.core.api_rules import HISTORY, Rules, rules_at
from kv_pipeline.core.content_blocks import BILLING_HEADER
from kv_pipeline.core.explain import Explained, Step, explain, ratios_of
from kv_pipeline.core.lengths import LengthBook
from kv_pipeline.core.model_facts import facts_of
from kv_pipeline.core.prompts import (
    ROOT,
    Prompt,
    PromptOptions,
    PromptTree,
    Request,
    Segment,
    Sent,
    Settings,
    breakpoints_of,
)
from kv_pipeline.schemas.columns import frame_of, polars_schema
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.explanations import CACHE_REPORT
from kv_pipeline.schemas.requests import MESSAGE_INDEX, RAW_REQUESTS
from kv_pipeline.schemas.transcripts import TRANSCRIPT_ANSWERS
from kv_pipeline.steps.index import user_databases
from kv_pipeline.steps.prompts import load_prompts
from kv_pipeline.store import Store

DEFAULT_MINIMUM_TOKENS: Final = 1024
"""Minimum of models that no table knows: the most common one. Source: `core.model_facts`."""

_ROW: Final = ["database_id", "row_id"]
_IN_ORDER: Final = ["requested_at_utc", "n_messages", "database_id", "row_id"]
_SETTINGS: Final = ("model", "speed_id", "context_management_id", "thinking_id", "tool_choice_id")
_SEGMENTS: Final = ("tools_segment", "system_segment", "message_segments")
_SENT: Final = (*_SEGMENTS, "breakpoints")
_NEEDED: Final = (
    *_IN_ORDER, *_SETTINGS, "user_id", "agent", "conversation_id", "request_index", "agent_id", "is_after_compaction",
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


PREDICTED: Final = (
    "predicted_read_tokens", "predicted_write_5m_tokens", "predicted_write_1h_tokens", "predicted_input_tokens",
)  # fmt: skip
"""Columns of what the model expects of a request."""

AS_DOCUMENTED: Final = ModelOptions()


class Simulated(NamedTuple):
    """Requests through the model, in order of time.

    Attributes:
        sent: The requests.
        rows: Their rows of RAW_REQUESTS, with their places in conversations, less what they sent.
        tree: Their prompts.
        steps: The requests as the model takes them.
        lengths: What all their bills say of prefixes' lengths.
        report: What became of those in conversations: frame of CACHE_REPORT.
    """

    sent: Sent
    rows: pl.DataFrame
    tree: PromptTree
    steps: list[Step]
    lengths: LengthBook
    report: pl.DataFrame


class _Requests:
    """Requests of rows, made anew each time they are gone through: all of a user's would take too much memory.

    Args:
        rows: The requests.
        recorded: What these and others sent, by database and row.
        first_numbers: Per database the number of its first segment.
    """

    def __init__(self, rows: pl.DataFrame, recorded: pl.DataFrame, first_numbers: Mapping[str, int]) -> None:
        places = recorded.select(_ROW).with_row_index("place")
        self._rows = rows.select(*_ROW, *_SETTINGS).join(places, on=_ROW, how="left", maintain_order="left").drop(_ROW)
        self._recorded = recorded.select("database_id", *_SENT)
        self._first = pl.col("database_id").replace_strict(first_numbers, return_dtype=pl.UInt32())

    def __iter__(self) -> Iterator[Request]:
        for part in self._rows.iter_slices(_ROWS_AT_A_TIME):
            sent = self._recorded[part["place"]].with_columns(pl.col(_SEGMENTS) + self._first)
            yield from map(_request, part.hstack(sent).iter_rows(named=True))


def simulate(store: Store, users: Sequence[str], options: ModelOptions = AS_DOCUMENTED) -> Simulated:
    """Users' requests through one model, with or without the billing header in the prompt: bills decide."""
    databases = [database for user_id in users for database in user_databases(store, user_id)]
    prompts = load_prompts(store, databases)
    recorded = [_recorded(store, user_id) for user_id in users]
    rows = pl.concat([_rows(store, *pair) for pair in zip(users, recorded, strict=True)]).sort(_IN_ORDER)
    requests = _Requests(rows, pl.concat([frame.select(*_ROW, *_SENT) for frame in recorded]), prompts.first_numbers)
    del recorded  # of which the requests need the lists alone
    strippers, minima = _strippers(rows), _minima(rows)

    def simulated(*, drops_headers: bool) -> Simulated:
        sent = Sent(requests, prompts.segments, PromptOptions(strippers, drops_headers=drops_headers))
        return _simulated(sent, rows, minima, options)

    if not _has_headers(prompts.segments):
        return simulated(drops_headers=False)
    n_exact = _n_exact(simulated(drops_headers=True))  # the one is gone before the other is made: they are large
    as_sent = simulated(drops_headers=False)
    if _n_exact(as_sent) >= n_exact:
        return as_sent
    del as_sent
    return simulated(drops_headers=True)


def _has_headers(segments: Mapping[int, Segment]) -> bool:
    return any(segment.blocks and segment.blocks[0].kind == BILLING_HEADER for segment in segments.values())


def _simulated(sent: Sent, rows: pl.DataFrame, minima: Mapping[str, int], options: ModelOptions) -> Simulated:
    tree, prompts = sent.place()
    steps = [_step(*pair, minima, options.rules) for pair in zip(prompts, rows.iter_rows(named=True), strict=True)]
    lengths = LengthBook(tree, ratios_of(tree, [step.use for step in steps]))
    explained = explain(tree, steps, lengths, shares_prefixes=options.shares_prefixes)
    report = frame_of(CACHE_REPORT, _report_rows(tree, zip(rows.iter_rows(named=True), steps, explained, strict=True)))
    return Simulated(sent, rows, tree, steps, lengths, report.sort("conversation_id", "request_index"))


def _n_exact(found: Simulated) -> int:
    """Requests whose billed read was predicted to the token."""
    has_bill = pl.col("input_tokens").is_not_null() & ~pl.col("has_applied_edits").fill_null(value=False)
    billed = found.report.join(found.rows.filter(has_bill), on=["conversation_id", "request_index"], how="semi")
    return billed.filter(pl.col("predicted_read_tokens") == pl.col("billed_read_tokens").fill_null(0)).height


def _recorded(store: Store, user_id: str) -> pl.DataFrame:
    """A user's RAW_REQUESTS, in the columns that are needed."""
    kept = {"outcome", "routed_model", *_NEEDED, *_SENT}
    columns = [name for name in polars_schema(RAW_REQUESTS) if name in kept]
    return store.read(RAW_REQUESTS, user_databases(store, user_id), columns)


def _rows(store: Store, user_id: str, recorded: pl.DataFrame) -> pl.DataFrame:
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
        store.read(MESSAGE_INDEX, databases, [*_ROW, "billed_row_id"])
        .join(traced, left_on=["database_id", "billed_row_id"], right_on=_ROW)
        .select(*_ROW, agent=pl.struct("conversation_id", "agent_id"))
    )
    copies = store.read(UNINDEXED_REQUESTS, [user_id]).filter(pl.col("reason") == "duplicate")
    return (
        recorded.with_columns(
            model=pl.coalesce("routed_model", "model"),
            n_messages=pl.col("message_segments").list.len(),
            n_breakpoints=pl.col("breakpoints").list.len(),
            user_id=pl.lit(user_id),
        )
        .drop(_SENT)
        .filter(pl.col("outcome").is_in(_BEGUN))
        .join(copies, on=_ROW, how="anti")
        .join(traced, on=_ROW, how="left")
        .join(agents, on=_ROW, how="left")
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


def _request(row: Mapping[str, Any]) -> Request:
    breakpoints = breakpoints_of(row["breakpoints"])
    return Request(_settings(row), row["tools_segment"], row["system_segment"], row["message_segments"], breakpoints)


def _settings(row: Mapping[str, Any]) -> Settings:
    return _settings_of(*map(row.__getitem__, _SETTINGS))


@lru_cache(maxsize=1024)
def _settings_of(
    model: str, speed: int | None, context_management: int | None, thinking: int | None, tool_choice: int | None
) -> Settings:
    """One object for all that are equal: few differ."""
    return Settings(intern(model), (speed, context_management), thinking, tool_choice)


@lru_cache(maxsize=1024)
def _agent(conversation_id: str, agent_id: str) -> tuple[str, str]:
    """One object for all of an agent's requests, which mostly follow each other."""
    return conversation_id, agent_id


def _step(prompt: Prompt, row: dict[str, Any], minima: Mapping[str, int], history: tuple[Rules, ...]) -> Step:
    started_s, settings = row["requested_at_utc"].timestamp(), _settings(row)
    use = Use(
        prompt=prompt,
        model=settings.model,
        owner=intern(row["user_id"]),
        agent=None if row["agent"] is None else _agent(*row["agent"].values()),
        started_s=started_s,
        began_s=_began_s(row, started_s),
        minimum_tokens=_minimum_tokens(row, minima),
        rules=rules_at(row["requested_at_utc"], history),
        bill=_bill(row),
    )
    return Step(settings, use, row["conversation_id"] is not None, bool(row["is_after_compaction"]))


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


def _report_rows(
    tree: PromptTree, requests: Iterable[tuple[dict[str, Any], Step, Explained | None]]
) -> Iterator[tuple[Any, ...]]:
    headers: dict[tuple[str, str], int | None] = {}
    for row, step, found in requests:
        if found is None:
            continue
        agent = (row["conversation_id"], row["agent_id"])
        has_churn = agent in headers and headers[agent] != row["billing_header_id"]
        headers[agent] = row["billing_header_id"]
        yield (
            *(row[name] for name in ("conversation_id", "request_index", "agent_id", "model", "requested_at_utc")),
            *_caching(tree, row, step.use, found),
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
    """Expected tokens, in the order of `PREDICTED`."""
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
