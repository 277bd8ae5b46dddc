"""What `kv-pipeline run` does, for those who let Dagster run it: a sensor that requests what is not up to date."""

# No `from __future__ import annotations` here: Dagster reads the context annotation as a type.

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import dagster as dg
import msgspec
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import WILL_RETRY_TAG

from kv_pipeline.defs.jobs import JOBS, index_conversations, ingest_databases, make_conversations
from kv_pipeline.defs.partitions import CONVERSATIONS, DATABASES, claim_range
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.environment import whole_number
from kv_pipeline.errors import UsageError
from kv_pipeline.landing import Landing
from kv_pipeline.steps import plan
from kv_pipeline.steps.conversations import fingerprint_of
from kv_pipeline.steps.databases import database_fingerprint
from kv_pipeline.steps.index import conversations, user_fingerprint
from kv_pipeline.steps.settled import Settled, settled
from kv_pipeline.store import Store

INTERVAL_VARIABLE: Final = "KV_PIPELINE_SENSOR_S"
DEFAULT_INTERVAL_S: Final = 30
REQUEST_TAG: Final = "kv_pipeline/request"
"""Tag of runs that the sensor requested: digest of what is to be done."""
MAX_LOST: Final = 3
"""Times that the same work is requested again because the process of its run was killed."""
DESCRIPTION: Final = """Requests runs for what is new or changed in the landing folder, one job after the other.

Databases are registered as partitions; then the index, which registers conversations; then the conversations.
Each is requested once per state of its inputs, so what failed is not tried again until they change; reset the
cursor to try at once. What was killed is requested again, three times at most. While a run is working on the store
the sensor waits. Files that changed in the last KV_PIPELINE_SETTLE_S seconds (60) are left for later, and so are
databases that are incomplete or locked; users' transcripts that never stand still are taken every night. Recordings
that left the folder are told in its log.
Of a landing folder in a bucket an object is whole once it is there, so only its changes are waited out.
"""


class _Work(NamedTuple):
    """What one job has to do.

    Attributes:
        job: Name of the job.
        partitions: List of partitions that the keys belong to; None if the job has none.
        fingerprints: Key to fingerprint of its inputs.
        config: Configuration of its run.
    """

    job: str
    partitions: dg.DynamicPartitionsDefinition | None
    fingerprints: Mapping[str, object]
    config: Mapping[str, Any] = MappingProxyType({})

    @property
    def digest(self) -> str:
        """Changes when there is something else to do."""
        return hashlib.blake2b(json.dumps(dict(self.fingerprints)).encode(), digest_size=16).hexdigest()


class _Cursor(NamedTuple):
    """What the sensor remembers.

    Attributes:
        asked: Job to digest of what it was last asked to do.
        seen: As `settled` returns.
        gone: Recordings that are known to have left the landing folder.
    """

    asked: dict[str, str]
    seen: dict[str, tuple[str, float]]
    gone: list[str]

    @classmethod
    def read(cls, text: str | None) -> "_Cursor":
        """From the instance; a cursor of an earlier version, or none, knows nothing."""
        try:
            return cls(**msgspec.json.decode(text or "", type=dict[str, Any]))
        except (msgspec.MsgspecError, TypeError):
            return cls({}, {}, [])

    @property
    def text(self) -> str:
        """As kept by the instance."""
        return json.dumps(self._asdict())


class _Busy(Exception):  # noqa: N818 - a state, not an error
    """A run is working on the store."""


@dg.sensor(
    jobs=JOBS,
    minimum_interval_seconds=whole_number(INTERVAL_VARIABLE, "seconds") or DEFAULT_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=DESCRIPTION,
)
def landing_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Request the next job that has something to do; see `DESCRIPTION`."""
    if _is_awaited(context.instance):
        return dg.SensorResult(skip_reason="A run that was requested has not ended.")
    try:
        cursor = _Cursor.read(context.cursor)
        found, store = pipeline.landing(), pipeline.open_store()
        look = settled(found, cursor.seen, time.time(), pipeline.settle_s)
        with store.writing(on_wait=_give_up):
            cursor = cursor._replace(seen=look.seen, gone=_told_gone(context, store, found, cursor.gone))
            result = _request(context, cursor, look.waiting, list(_to_do(store, found, look)))
            if result.run_requests:
                store.sweep()  # runs that were killed left temporary files, and this process is alone
            return result
    except UsageError:
        return dg.SensorResult(skip_reason="There is no landing folder.")
    except _Busy:
        return dg.SensorResult(skip_reason="A run is working on the store.")


def _request(
    context: dg.SensorEvaluationContext, cursor: _Cursor, waiting: Sequence[str], to_do: Sequence[_Work]
) -> dg.SensorResult:
    """Request the first work that was not requested yet; what is up to date again may be requested again."""
    asked = [work for work in to_do if cursor.asked.get(work.job) == work.digest]
    pending = {work.job: work.digest for work in asked if not _is_lost(context.instance, work)}
    work = next((work for work in to_do if work.job not in pending), None)
    if work is None:
        return dg.SensorResult(skip_reason=_reason(pending, waiting), cursor=cursor._replace(asked=pending).text)
    tags = claim_range(context.instance, work.partitions, list(work.fingerprints)) if work.partitions else {}
    request = dg.RunRequest(job_name=work.job, tags={**tags, REQUEST_TAG: work.digest}, run_config=dict(work.config))
    return dg.SensorResult([request], cursor=cursor._replace(asked=pending | {work.job: work.digest}).text)


def _is_awaited(instance: dg.DagsterInstance) -> bool:
    """Whether a run that was requested has not ended: asking for more would move the partitions that it is to work on.

    Only where Dagster notices those that never will, or a lost one would be waited for for ever.
    """
    if not (instance.run_monitoring_enabled and instance.run_monitoring_start_timeout_seconds):
        return False
    going = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    return any(REQUEST_TAG in run.tags for run in going)


def _is_lost(instance: dg.DagsterInstance, work: _Work) -> bool:
    """Whether what was requested has to be requested again: nothing failed, but the run or its process is gone.

    Where Dagster launches such runs again, that comes first.
    """
    runs = instance.get_runs(dg.RunsFilter(job_name=work.job, tags={REQUEST_TAG: work.digest}))
    if not runs:
        return True
    n_lost = sum(_was_killed(instance, run) for run in runs)
    return n_lost <= MAX_LOST and _was_killed(instance, runs[0]) and runs[0].tags.get(WILL_RETRY_TAG) != "true"


def _was_killed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run failed and none of its steps did."""
    if run.status != dg.DagsterRunStatus.FAILURE:
        return False
    return not instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1).records


def _reason(pending: Mapping[str, str], waiting: Sequence[str]) -> str:
    reasons = [f"Requested already: {', '.join(pending)}."] if pending else []
    if waiting:
        reasons.append(f"Still changing, or too new: {len(waiting)} recordings or users' transcripts.")
    return " ".join(reasons) or "Everything is up to date."


def _told_gone(context: dg.SensorEvaluationContext, store: Store, landing: Landing, known: Sequence[str]) -> list[str]:
    """Recordings that left the landing folder; those that are news are logged."""
    gone = plan.not_in_landing(store, landing)
    news = sorted(set(gone) - set(known))
    if news:
        context.log.info(
            f"{len(news)} recordings are no longer in the landing folder and stay in the store: {', '.join(news[:5])}"
        )
    return gone


def _give_up() -> None:
    raise _Busy


def _to_do(store: Store, landing: Landing, look: Settled) -> Iterator[_Work]:
    there = look.landing
    databases = {key: database_fingerprint(there.databases[key]) for key in plan.stale_databases(store, there)}
    if databases:
        yield _Work(ingest_databases.name, DATABASES, databases)
    users = {
        user: user_fingerprint(store, user, plan.transcripts_of(landing, user))
        for user in plan.stale_users(store, landing)
        if user not in landing.transcripts or user in there.transcripts
    }
    obsolete = dict.fromkeys(plan.obsolete_conversations(store))
    if users or obsolete:
        config = {"ops": {"conversation_index": {"config": {"users": sorted(users)}}}}
        yield _Work(index_conversations.name, None, users | obsolete, config)
    known = dict(conversations(store).select("conversation_id", "fingerprint").iter_rows())
    changed = {
        key: [fingerprint_of(table, known[key]) for table in plan.CONVERSATION_TABLES]
        for key in plan.stale_conversations(store)
    }
    if changed:
        yield _Work(make_conversations.name, CONVERSATIONS, changed)
