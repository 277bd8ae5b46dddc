"""`kv-pipeline list` and `kv-pipeline validate`."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from kv_pipeline.cli.display import SHORT_ID, is_narrow, print_json, print_table
from kv_pipeline.core.api_rules import HISTORY, with_collapsed_tool_runs
from kv_pipeline.errors import UsageError
from kv_pipeline.remote.url import Location
from kv_pipeline.reports.summary import (
    api_table,
    cache_report,
    conversation_list,
    validation_table,
    with_approximate,
)
from kv_pipeline.steps.simulation import ModelOptions
from kv_pipeline.store import Store, is_store

_ORDERS = {
    "name": ("conversation_id", False),
    "first": ("first_request_at_utc", False),
    "last": ("last_request_at_utc", True),
    "requests": ("n_requests", True),
}
_LIST_COLUMNS = [
    ("user_id", "user"), ("session_id", "session"), ("n_requests", "requests"),
    ("first_request_at_utc", "first request"), ("last_request_at_utc", "last request"),
    ("models", "models"), ("n_agents", "agents"), ("subagent_types", "sub-agent types"), ("match_rate", "matched"),
    ("n_rebuilt", "rebuilt"), ("n_approximate", "approximate"),
]  # fmt: skip
_RATE_COLUMNS = [
    ("scope", "scope"), ("lifetime", "lifetime"), ("n_requests", "requests"), ("simulated_hit_rate", "simulated"),
    ("billed_hit_rate", "billed"), ("difference_points", "difference"), ("share_within_one_block", "within one block"),
]  # fmt: skip
_DEFINITION = (
    "Blocks model. rate = cache read / (input + cache read + cache write), over tokens; difference in percentage "
    "points; within one block: share of requests whose billed read is predicted that closely; "
    "approximate: requests of the conversation that were put together from transcripts."
)


_API_COLUMNS = [
    ("n_requests", "requests"), ("n_caching", "caching"), ("predicted_hit_rate", "predicted"),
    ("billed_hit_rate", "billed"), ("difference_points", "difference"), ("exact_share", "exact"),
]  # fmt: skip
_CONVERSATION = ("conversation_id", "conversation")
_API_TABLES: dict[str, list[str]] = {"conversations": ["conversation_id"], "models": ["model"], "fleet": []}
_API_DEFINITION = (
    "API model. rate = cache read / billed prompt tokens; difference in percentage points; exact: of the requests "
    "that use caching, the share whose billed read is predicted to the token."
)


def open_existing(where: Location) -> Store:
    """Open a store that must be there.

    Raises:
        UsageError: There is none.
    """
    require_store(where)
    return Store.open(where)


def require_store(where: Location) -> None:
    """Check that there is a store, of whatever version.

    Raises:
        UsageError: There is none.
    """
    if not is_store(where):
        raise UsageError(f"There is no store at {where}. Make one with `kv-pipeline run --store {where}`.")


def list_command(where: Location, sort: str, limit: int | None, *, as_json: bool) -> None:
    """Print the conversations."""
    column, descending = _ORDERS[sort]
    frame = conversation_list(open_existing(where)).sort(column, "conversation_id", descending=[descending, False])
    shown = frame if limit is None else frame.head(limit)
    if as_json:
        print_json(shown.to_dicts())
    else:
        title = f"{frame.height} conversations, times in UTC"
        print_table(title, _shortened(shown) if is_narrow() else shown, _LIST_COLUMNS)


def _shortened(frame: pl.DataFrame) -> pl.DataFrame:
    """Names as short as `export --conversation-id` takes them, models without vendor and date, times to the minute."""
    times = pl.col("first_request_at_utc", "last_request_at_utc").dt.strftime("%m-%d %H:%M")
    model = pl.element().str.replace("^claude-", "").str.replace(r"-\d{8}$", "")
    return frame.with_columns(
        times, pl.col("session_id").str.slice(0, SHORT_ID).alias("session_id"), pl.col("models").list.eval(model)
    )


def validate_command(
    where: Location,
    limit: int | None,
    *,
    shares_prefixes: bool = False,
    collapses_since: datetime | None = None,
    as_json: bool,
) -> None:
    """Print simulated against billed rates, of both models.

    Args:
        where: The store.
        limit: Show only so many conversations.
        shares_prefixes: API model with one cache of tools and system prompts for everybody.
        collapses_since: API model in which a run of tool blocks is one position from this moment on.
        as_json: Print for machines.
    """
    store = open_existing(where)
    rules = HISTORY if collapses_since is None else with_collapsed_tool_runs(collapses_since.replace(tzinfo=UTC))
    report = cache_report(store, ModelOptions(shares_prefixes, rules))
    by_conversation, by_model, fleet = (
        validation_table(store, by) for by in (["conversation_id"], ["model"], list[str]())
    )
    by_conversation = with_approximate(store, by_conversation)
    explained = {name: api_table(report, by) for name, by in _API_TABLES.items()}
    if limit is not None:
        first = by_conversation["conversation_id"].unique(maintain_order=True).head(limit)
        by_conversation = by_conversation.filter(pl.col("conversation_id").is_in(first.implode()))
        explained["conversations"] = explained["conversations"].head(limit)
    if as_json:
        tables = {"conversations": by_conversation, "models": by_model, "fleet": fleet}
        api = {name: frame.to_dicts() for name, frame in explained.items()}
        print_json({
            "definition": _DEFINITION,
            **{name: frame.to_dicts() for name, frame in tables.items()},
            "api": {"definition": _API_DEFINITION, **api},
        })  # fmt: skip
        return
    columns = [_CONVERSATION, *_RATE_COLUMNS, ("n_approximate", "approximate")]
    print_table("Conversations", by_conversation, columns)
    print_table("Models", by_model, [("model", "model"), *_RATE_COLUMNS])
    print_table("Fleet", fleet, _RATE_COLUMNS, caption=_DEFINITION)
    print_table("API model, conversations", explained["conversations"], [_CONVERSATION, *_API_COLUMNS])
    print_table("API model, models", explained["models"], [("model", "model"), *_API_COLUMNS])
    print_table("API model, fleet", explained["fleet"], _API_COLUMNS, caption=_API_DEFINITION)
