"""What `kv-pipeline run` does, for those who let Dagster run it: a sensor that requests what is not up to date."""

# No `from __future__ import annotations` here: Dagster reads the context annotation as a type.

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import dagster as dg

from kv_pipeline.defs.jobs import JOBS, index_conversations, ingest_databases, make_conversations
from kv_pipeline.defs.partitions import CONVERSATIONS, DATABASES, claim_range
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.errors import UsageError
from kv_pipeline.landing import Landing
from kv_pipeline.steps import plan
from kv_pipeline.steps.conversations import fingerprint_of
from kv_pipeline.steps.databases import database_fingerprint
from kv_pipeline.steps.index import conversations, user_fingerprint
from kv_pipeline.store import Store

INTERVAL_S: Final = 30
DESCRIPTION: Final = """Requests runs for what is new or changed in the landing folder, one job after the other.

Databases are registered as partitions; then the index, which registers conversations; then the conversations.
Each is requested once per state of its inputs, so what failed is not tried again until they change; reset the
cursor to try at once. While a run is working on the store the sensor waits.
"""


class _Work(NamedTuple):
    """What one job has to do.

    Attributes:
        job: Name of the job.
        partitions: List of partitions that the keys belong to; None if the job has none.
        fingerprints: Key to fingerprint of its inputs.
    """

    job: str
    partitions: dg.DynamicPartitionsDefinition | None
    fingerprints: Mapping[str, object]

    @property
    def digest(self) -> str:
        """Changes when there is something else to do."""
        return hashlib.blake2b(json.dumps(dict(self.fingerprints)).encode(), digest_size=16).hexdigest()


class _Busy(Exception):  # noqa: N818 - a state, not an error
    """A run is working on the store."""


@dg.sensor(
    jobs=JOBS,
    minimum_interval_seconds=INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=DESCRIPTION,
)
def landing_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Request the next job that has something to do; see `DESCRIPTION`."""
    try:
        landing, store = pipeline.landing(), pipeline.open_store()
        with store.writing(on_wait=_give_up):
            return _request(context, list(_to_do(store, landing)))
    except UsageError:
        return dg.SensorResult(skip_reason="There is no landing folder.")
    except _Busy:
        return dg.SensorResult(skip_reason="A run is working on the store.")


def _request(context: dg.SensorEvaluationContext, to_do: Sequence[_Work]) -> dg.SensorResult:
    """Request the first work that was not requested yet; what is up to date again may be requested again."""
    asked = json.loads(context.cursor or "{}")
    pending = {work.job: work.digest for work in to_do if asked.get(work.job) == work.digest}
    work = next((work for work in to_do if work.job not in pending), None)
    if work is None:
        reason = f"Requested already: {', '.join(pending)}." if pending else "Everything is up to date."
        return dg.SensorResult(skip_reason=reason, cursor=json.dumps(pending))
    tags = claim_range(context.instance, work.partitions, list(work.fingerprints)) if work.partitions else {}
    cursor = json.dumps(pending | {work.job: work.digest})
    return dg.SensorResult([dg.RunRequest(job_name=work.job, tags=tags)], cursor=cursor)


def _give_up() -> None:
    raise _Busy


def _to_do(store: Store, landing: Landing) -> Iterator[_Work]:
    databases = {key: database_fingerprint(landing.databases[key]) for key in plan.stale_databases(store, landing)}
    if databases:
        yield _Work(ingest_databases.name, DATABASES, databases)
    users = {
        user: user_fingerprint(store, user, plan.transcripts_of(landing, user))
        for user in plan.stale_users(store, landing)
    }
    obsolete = dict.fromkeys(plan.obsolete_conversations(store))
    if users or obsolete:
        yield _Work(index_conversations.name, None, users | obsolete)
    known = dict(conversations(store).select("conversation_id", "fingerprint").iter_rows())
    changed = {
        key: [fingerprint_of(table, known[key]) for table in plan.CONVERSATION_TABLES]
        for key in plan.stale_conversations(store)
    }
    if changed:
        yield _Work(make_conversations.name, CONVERSATIONS, changed)
