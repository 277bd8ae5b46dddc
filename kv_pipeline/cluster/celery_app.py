"""The Celery application that workers run: one task, which executes one run of Dagster.

    celery -A kv_pipeline.cluster.celery_app worker -c 1

or `kv-pipeline worker`, which sets the environment first. A message holds the run's id and nothing else.
"""

from __future__ import annotations

import os
from typing import Any, Final

from celery import Celery

from kv_pipeline.defs.instance import BROKER_VARIABLE

TASK: Final = "kv_pipeline.execute_run"
DEFAULT_QUEUE: Final = "kv_pipeline"
QUEUE_VARIABLE: Final = "KV_PIPELINE_QUEUE"
_REDELIVERY_S: Final = 600


def default_queue() -> str:
    """Name of the queue that runs go to."""
    return os.environ.get(QUEUE_VARIABLE) or DEFAULT_QUEUE


def settings(broker: str) -> dict[str, Any]:
    """Settings that launcher and workers share.

    Messages are acknowledged when the run has ended, so those of a lost worker are delivered again: at once by
    RabbitMQ, after `_REDELIVERY_S` by Redis, which delivers those of longer runs again as well. The lease makes both
    harmless.
    """
    return {
        "broker_url": broker,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {"visibility_timeout": _REDELIVERY_S} if broker.startswith("redis") else {},
        "task_default_queue": default_queue(),
        "task_ignore_result": True,
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,  # what waits belongs to the broker, not to a worker that may be lost
        "worker_max_tasks_per_child": 50,  # gives memory back
        "worker_hijack_root_logger": False,
    }


def application(broker: str) -> Celery:
    """An application on a broker; dagster-celery's own declares its queues differently, which RabbitMQ refuses."""
    made = Celery("kv_pipeline", set_as_current=False)
    made.conf.update(settings(broker))
    return made


app = application(os.environ.get(BROKER_VARIABLE, ""))


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def execute_run(run_id: str) -> None:
    """Execute a run that was launched, in this process."""
    from dagster import DagsterInstance

    from kv_pipeline.cluster.work import work_on

    with DagsterInstance.get() as instance:
        work_on(instance, run_id)
