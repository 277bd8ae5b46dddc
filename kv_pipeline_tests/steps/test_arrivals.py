"""Databases, logs, transcripts and recovered transcripts of one user, in any selection and order of arrival."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kv_pipeline.export.transcripts import write_transcripts
from kv_pipeline.landing import discover
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS, CONVERSATIONS, UNINDEXED_REQUESTS
from kv_pipeline.schemas.requests import RAW_REQUESTS
from kv_pipeline.steps import databases, index, plan
from kv_pipeline.steps.recovery import RecoveryPolicy
from kv_pipeline.steps.transcribed import transcribed_partition
from kv_pipeline.store import Store
from kv_pipeline_tests.as_log import sessions_of, write_log
from kv_pipeline_tests.factories import open_store
from kv_pipeline_tests.recovery_truth import hide_transcripts

EXAMPLE = Path("data/example").resolve()
EVERYTHING = RecoveryPolicy(is_everything=True)
REQUEST = ["conversation_id", "request_index", "agent_id", "turn_index", "message_id", "is_after_compaction"]


class Pieces(NamedTuple):
    """What can arrive: names of files in the landing folder, to files that have their content."""

    user: str
    files: dict[str, Path]
    truth: pl.DataFrame


def indexed(store: Store, landing_folder: Path) -> None:
    """What a run does up to the index."""
    landing = discover(landing_folder)
    for key in plan.stale_databases(store, landing):
        databases.ingest_database(store, landing.databases[key])
        databases.index_database(store, key)
    for user in plan.stale_users(store, landing):
        index.index_user(store, user, plan.transcripts_of(landing, user))


def made(root: Path, landing_folder: Path, policy: RecoveryPolicy | None = None) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        store = open_store(root, patch)
    if policy:
        policy.keep(store)
    indexed(store, landing_folder)
    return store


def listed(folder: Path, below: str) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted((folder / below).rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", params=["ada", "grace", "linus"])
def pieces(request, tmp_path_factory):
    """A user's databases, a log of one of them, transcripts, and transcripts recovered from content alone."""
    user, root = request.param, tmp_path_factory.mktemp("pieces")
    exact = made(root / "exact", Path(shutil.copytree(EXAMPLE / user, root / "landing" / user)).parent)
    write_log(
        root / user / "requests.jsonl", EXAMPLE / user / "requests.db", f"{user}/requests", sessions_of(exact, user)
    )
    hide_transcripts(EXAMPLE / user, root / "hidden" / user, has_headers=False)
    recovered = made(root / "recovered", root / "hidden")
    write_transcripts(recovered, root / "written")
    files = {path.name: path for path in sorted((EXAMPLE / user).glob("*.db"))}
    files |= listed(root / user, ".") | listed(EXAMPLE / user, "projects") | listed(root / "written" / user, "projects")
    return Pieces(user, files, exact.read(CONVERSATION_REQUESTS, [user]))


def put(landing_folder: Path, pieces: Pieces, names: list[str]) -> None:
    for name in names:
        to = landing_folder / pieces.user / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pieces.files[name], to)


def said(store: Store, user: str) -> list[list[tuple[object, ...]]]:
    """The index, as far as it does not depend on which of two equal files was read first."""
    keys = store.partitions(RAW_REQUESTS.name)
    exactness = store.read(RAW_REQUESTS, keys).group_by("recorded_by", "exactness").len().sort(pl.all())
    frames = [store.read(model, [user]) for model in (CONVERSATIONS, AGENTS, CONVERSATION_REQUESTS, UNINDEXED_REQUESTS)]
    return [frame.rows() for frame in (*frames, exactness)]


@settings(max_examples=6, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_arrived_counts_and_not_when(pieces, tmp_path_factory, data):
    """After each arrival the index is what it would be made at once, and no answer counts twice."""
    names = data.draw(st.permutations(list(pieces.files)))
    n_first, n_then = sorted(data.draw(st.tuples(st.integers(0, len(names)), st.integers(1, len(names)))))
    policy = data.draw(st.sampled_from([None, EVERYTHING]))
    root = tmp_path_factory.mktemp("arrivals")
    (root / "landing").mkdir()
    store = made(root / "store", root / "landing", policy)
    for arriving in (names[:n_first], names[n_first:n_then]):
        put(root / "landing", pieces, arriving)
        indexed(store, root / "landing")
    at_once = made(root / "at once", root / "landing", policy)
    assert said(store, pieces.user) == said(at_once, pieces.user)
    assert store.read(CONVERSATION_REQUESTS, [pieces.user])["message_id"].is_unique().all()


@pytest.mark.parametrize("policy", [None, EVERYTHING], ids=["run", "recover"])
def test_recovered_transcripts_give_way_to_the_clients_own(pieces, tmp_path, policy):
    own = [name for name in pieces.files if "projects/recovered" not in name and not name.endswith("requests.jsonl")]
    recovered = [name for name in pieces.files if "projects/recovered" in name]
    databases_alone = [name for name in own if name.endswith(".db")]
    put(tmp_path / "landing", pieces, [*databases_alone, *recovered])
    store = made(tmp_path / "store", tmp_path / "landing", policy)
    assert set(store.read(CONVERSATIONS, [pieces.user])["structure"]) == {"transcripts"}
    put(tmp_path / "landing", pieces, own)
    indexed(store, tmp_path / "landing")
    assert store.read(CONVERSATION_REQUESTS, [pieces.user]).select(REQUEST).equals(pieces.truth.select(REQUEST))


def test_nothing_is_made_of_recovered_transcripts_alone(pieces, tmp_path):
    """They have no content: a request made of them would be an empty prompt."""
    put(tmp_path / "landing", pieces, [name for name in pieces.files if "projects/recovered" in name])
    store = made(tmp_path / "store", tmp_path / "landing")
    assert store.read(CONVERSATION_REQUESTS, [pieces.user]).is_empty()
    assert transcribed_partition(pieces.user) not in store.partitions(RAW_REQUESTS.name)


def test_transcripts_of_half_the_conversations_leave_the_others_to_recovery(pieces, tmp_path):
    """Each request counts once, and what has a transcript is as it is with all of them."""
    sessions = pieces.truth["conversation_id"].unique().sort().to_list()
    hidden = sessions[-1].partition("/")[2]
    names = [name for name in pieces.files if "recovered" not in name and hidden not in name]
    names = [name for name in names if not name.endswith("requests.jsonl")]
    put(tmp_path / "landing", pieces, names)
    store = made(tmp_path / "store", tmp_path / "landing", EVERYTHING)
    known = store.read(CONVERSATION_REQUESTS, [pieces.user])
    others = pl.col("conversation_id") != sessions[-1]
    told = store.read(CONVERSATIONS, [pieces.user]).filter(others, structure="transcripts")
    covered = known.join(told, on="conversation_id", how="semi")
    assert covered.select(REQUEST).equals(pieces.truth.filter(others).select(REQUEST))
    assert known["message_id"].is_unique().all()
