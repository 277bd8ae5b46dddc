"""cache_report and what_if: one user's requests through the *API* model, and what they would be otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from kv_pipeline.core.api_model import Prediction
from kv_pipeline.core.scenarios import Scenario, what_if
from kv_pipeline.schemas.columns import polars_schema
from kv_pipeline.schemas.conversations import CONVERSATIONS
from kv_pipeline.schemas.explanations import CACHE_REPORT, CONTENT_BLOCKS, WHAT_IF
from kv_pipeline.steps.databases import CONTENT_STATE
from kv_pipeline.steps.index import INDEX_STATE, user_databases
from kv_pipeline.steps.prompts import has_all_text
from kv_pipeline.steps.simulation import PREDICTED, Simulated, predicted, simulate
from kv_pipeline.steps.versions import CACHE_REPORT_VERSION, CONTENT_BLOCKS_VERSION
from kv_pipeline.store import Store

CACHE_REPORT_STATE: Final = "cache_report"
_PLACE: Final = ("conversation_id", "request_index", "model")


def explain_user(store: Store, user_id: str) -> pl.DataFrame:
    """Write a user's cache_report and what_if; returns the former."""
    fingerprint = report_fingerprint(store, user_id)
    simulated = simulate(store, [user_id])
    report, places, tokens = simulated.report, simulated.rows.select(_PLACE), _scenarios(simulated)
    del simulated  # large, and done with
    store.write(CACHE_REPORT, user_id, report)
    store.write(WHAT_IF, user_id, _what_if_frame(places, tokens))
    store.update_state(CACHE_REPORT_STATE, {user_id: fingerprint})
    return report


def _scenarios(simulated: Simulated) -> dict[Scenario, npt.NDArray[np.int64]]:
    """Predicted tokens of each scenario, shape (requests, kinds of tokens in the order of the table)."""
    uses = [step.use for step in simulated.steps]
    scenarios = what_if(simulated.sent, uses, simulated.tree, simulated.lengths)
    return {scenario: _tokens(predictions) for scenario, predictions in scenarios}


def _tokens(predictions: Iterable[Prediction]) -> npt.NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(map(predicted, predictions)), np.int64).reshape(-1, len(PREDICTED))


def _what_if_frame(places: pl.DataFrame, tokens: Mapping[Scenario, npt.NDArray[np.int64]]) -> pl.DataFrame:
    """Frame of WHAT_IF of the requests that have a place in a conversation."""
    columns = polars_schema(WHAT_IF).names()
    frames = [
        places.hstack(pl.DataFrame(found, schema=list(PREDICTED)))
        .with_columns(scenario=pl.lit(scenario.value))
        .drop_nulls("conversation_id")
        .select(columns)
        for scenario, found in tokens.items()
    ]
    return pl.concat(frames).sort(WHAT_IF.unique)


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
        store.has(CONTENT_BLOCKS.name, key) or has_all_text(store, key) for key in user_databases(store, user_id)
    )


def report_fingerprint(store: Store, user_id: str) -> str:
    """Fingerprint of what a user's report is made of: the index and what the databases say."""
    content = store.state(CONTENT_STATE)
    inputs = (store.state(INDEX_STATE).get(user_id), [(key, content[key]) for key in user_databases(store, user_id)])
    digest = hashlib.blake2b(repr(inputs).encode(), digest_size=16).hexdigest()
    return f"{CACHE_REPORT_VERSION}.{CONTENT_BLOCKS_VERSION}-{digest}"
