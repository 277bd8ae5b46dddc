"""How well caching works: hit rate, money, breakpoints, and what to do about losses. Format: docs/monitor.md."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import polars as pl

from kv_pipeline.core.causes import Cause
from kv_pipeline.core.prices import PriceTable
from kv_pipeline.errors import UsageError
from kv_pipeline.reports.frames.money import causes, what_if
from kv_pipeline.reports.frames.requests import all_conversations
from kv_pipeline.reports.frames.sums import unpriced_models
from kv_pipeline.reports.ratios import ratio
from kv_pipeline.reports.remedies import REMEDIES, SCENARIO_OF, UNPROFITABLE
from kv_pipeline.schemas.conversations import CONVERSATION_REQUESTS
from kv_pipeline.schemas.explanations import WHAT_IF
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.steps.selection import selected_conversations
from kv_pipeline.store import Store

SCHEMA_VERSION: Final = 1
"""Of the JSON; raised when a key changes its meaning or goes."""
MAX_BREAKPOINTS: Final = 4
STATUSES: Final = ((0.8, "excellent"), (0.6, "good"), (0.4, "fair"))
"""Above 80 % excellent; from 60 % on good; from 40 % on fair; poor below."""
MONITOR_DEFINITION: Final = (
    "An event is a traced request that was billed; a hit one that read from the cache. hit rate = cache read / (input "
    "+ cache read + cache write), over the API's tokens."
)

Json = dict[str, Any]


class Period(NamedTuple):
    """Times of requests that count; None is open.

    Attributes:
        since: First moment.
        until: First moment that no longer counts.
    """

    since: datetime | None = None
    until: datetime | None = None

    def holds(self) -> pl.Expr:
        """Whether a request is in the period."""
        time = pl.col("requested_at_utc")
        after = pl.lit(value=True) if self.since is None else time >= self.since
        before = pl.lit(value=True) if self.until is None else time < self.until
        return after & before


def status(hit_rate: float) -> str:
    """What a hit rate is called."""
    best, name = STATUSES[0]
    if hit_rate > best:
        return name
    return next((name for limit, name in STATUSES[1:] if hit_rate >= limit), "poor")


def monitor(store: Store, prices: PriceTable, period: Period, user_id: str | None = None) -> Json:
    """The monitor's report, as documented in docs/monitor.md.

    Args:
        store: The store, up to date.
        prices: Prices in force.
        period: Times of requests that count.
        user_id: Only this user's; all if None.

    Raises:
        UsageError: There is no such user.
    """
    keys = _keys(store, user_id)
    parts = [each.requests.filter(period.holds()) for each in all_conversations(store, keys, prices)]
    requests = pl.concat(parts) if parts else pl.DataFrame()
    users = sorted({key.partition("/")[0] for key in keys})
    events = requests.filter(pl.col("billed_prompt_tokens").is_not_null()) if parts else requests
    return {
        "schema_version": SCHEMA_VERSION,
        "definition": MONITOR_DEFINITION,
        "period": {"since_utc": _iso(period.since), "until_utc": _iso(period.until)},
        "user": user_id,
        "overview": overview(events),
        "breakpoints": breakpoints(_markers(store, users, events)),
        "causes": _cause_rows(events),
        "recommendations": recommendations(events, _scenarios(store, users, events, prices)),
    }


def overview(events: pl.DataFrame) -> Json:
    """Counts, rates and money; zeros of nothing.

    Args:
        events: Billed requests as `request_rows` gives; may be without columns if there are none.
    """
    n_hits = events.filter(pl.col("billed_read_tokens") > 0).height if events.height else 0
    read, prompt = _sum(events, "billed_read_tokens"), _sum(events, "billed_prompt_tokens")
    hit_rate = ratio(read, prompt)
    original, cached = _sum(events, "cost_without_caching_usd"), _sum(events, "cost_usd")
    n_unpriced = int(events["cost_usd"].null_count()) if events.height else 0
    return {
        "n_events": events.height,
        "n_hits": n_hits,
        "n_misses": events.height - n_hits,
        "hit_rate": hit_rate,
        "status": status(hit_rate),
        "request_hit_rate": ratio(n_hits, events.height),
        "prompt_tokens": int(prompt),
        "saved_tokens": int(read),
        "average_saved_tokens_per_hit": ratio(read, n_hits),
        "original_cost_usd": original,
        "cached_cost_usd": cached,
        "savings_usd": original - cached,
        "savings_rate": ratio(original - cached, original),
        "n_events_without_price": n_unpriced,
        "models_without_price": unpriced_models(events) if events.height else [],
    }


def breakpoints(markers: pl.DataFrame) -> list[Json]:
    """Use of the four breakpoints that a request may set.

    Args:
        markers: One row a request: `breakpoints`, the sections of its markers in prompt order.

    Returns:
        Per place 1 to 4: in how many requests it is used, their share, and in which sections.
    """
    number = pl.col("breakpoints").list.len() if markers.height else None
    rows = []
    for place in range(1, MAX_BREAKPOINTS + 1):
        used = markers.filter(number >= place) if number is not None else markers
        sections = used.select(section=pl.col("breakpoints").list.get(place - 1)) if used.height else None
        counts = {} if sections is None else dict(sections["section"].value_counts().sort("section").iter_rows())
        share = ratio(used.height, markers.height)
        rows.append({"breakpoint": place, "n_requests": used.height, "share": share, "sections": counts})
    return rows


def recommendations(events: pl.DataFrame, scenarios: pl.DataFrame) -> list[Json]:
    """What to do about losses, dearest first; nothing where nothing was lost.

    Args:
        events: Billed requests.
        scenarios: As `what_if` gives for these requests.
    """
    found = []
    worth = {row["scenario_id"]: row for row in scenarios.iter_rows(named=True)}
    for row in _cause_rows(events):
        cause = Cause(row["cause"])
        if cause not in REMEDIES:
            continue
        scenario = SCENARIO_OF.get(cause)
        predicted = worth.get(scenario.value) if scenario else None
        saving_usd = predicted["saved_usd"] if predicted else None
        is_unprofitable = saving_usd is not None and saving_usd < 0
        found.append(
            {
                **{key: row[key] for key in ("cause", "n_requests", "lost_tokens", "lost_usd", "lost_share")},
                "remedy": UNPROFITABLE.get(cause, REMEDIES[cause]) if is_unprofitable else REMEDIES[cause],
                "evidence": _evidence(events, cause),
                "predicted_saving_usd": saving_usd,
            }
        )
    return sorted(found, key=lambda row: (-row["lost_usd"], -row["lost_tokens"], row["cause"]))


def _evidence(events: pl.DataFrame, cause: Cause) -> Json:
    """Where the losses are: gaps, sections, agents, and the dearest request."""
    mine = events.filter(pl.col("cause") == cause.value, pl.col("lost_tokens") > 0)
    dearest = mine.sort("lost_tokens", descending=True).row(0, named=True)
    sections = mine["divergence_section"].drop_nulls().value_counts().sort("divergence_section")
    gap_s = mine["gap_s"].median()
    return {
        "n_conversations": mine["conversation_id"].n_unique(),
        "n_agents": mine.select("conversation_id", "agent_id").n_unique(),
        "median_gap_s": gap_s,
        "sections": dict(sections.iter_rows()),
        "dearest": {
            "conversation_id": dearest["conversation_id"],
            "request_index": dearest["request_index"],
            "lost_tokens": dearest["lost_tokens"],
        },
    }


def _cause_rows(events: pl.DataFrame) -> list[Json]:
    if events.is_empty():
        return []
    return [
        {"cause": row["cause_id"], **{key: row[key] for key in
         ("description", "is_avoidable", "n_requests", "lost_tokens", "lost_usd", "lost_share")}}
        for row in causes(events).iter_rows(named=True)
    ]  # fmt: skip


def _keys(store: Store, user_id: str | None) -> list[str]:
    keys = selected_conversations(store)
    if user_id is None:
        return keys
    mine = [key for key in keys if key.partition("/")[0] == user_id]
    if not mine:
        known = ", ".join(sorted({key.partition("/")[0] for key in keys})) or "nobody"
        raise UsageError(f"There is no user {user_id!r} with conversations. There are: {known}.")
    return mine


def _markers(store: Store, users: Sequence[str], events: pl.DataFrame) -> pl.DataFrame:
    """Sections of each event's markers."""
    if events.is_empty():
        return pl.DataFrame(schema={"breakpoints": pl.List(pl.String)})
    keys = ["conversation_id", "request_index"]
    placed = store.read(CONVERSATION_REQUESTS, users).join(events.select(keys), on=keys, how="semi")
    raw = store.read(RAW_REQUESTS, placed["database_id"].unique().sort())
    sections = pl.col("breakpoints").list.eval(pl.element().struct.field("section"))
    return placed.select("database_id", row_id="billed_row_id").join(
        raw.select("database_id", "row_id", breakpoints=sections), on=["database_id", "row_id"]
    )


def _scenarios(store: Store, users: Sequence[str], events: pl.DataFrame, prices: PriceTable) -> pl.DataFrame:
    if events.is_empty():
        return pl.DataFrame(schema={"scenario_id": pl.String, "saved_usd": pl.Float64})
    return what_if(store.read(WHAT_IF, users), events, prices)


def _sum(events: pl.DataFrame, column: str) -> float:
    return float(events[column].sum()) if events.height else 0.0


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
