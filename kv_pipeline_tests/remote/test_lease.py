from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from kv_pipeline.errors import StoreError, UsageError
from kv_pipeline.remote.url import location

pytest.importorskip("obstore", reason="pip install 'kv-pipeline[objects]'")

from obstore.store import MemoryStore

from kv_pipeline.remote.lease import LEASE, Lease, Times
from kv_pipeline.remote.objects import Objects, Version

FAST = Times(expire_s=3, renew_s=0.1, poll_s=0.02)
SILENT = Times(expire_s=0.6, renew_s=1000, poll_s=0.02)


@pytest.fixture(params=["memory", "s3"])
def objects(request):
    if request.param == "s3":
        return Objects.open(request.getfixturevalue("machines").at("store"))
    return Objects(location("s3://bucket/memory"), MemoryStore())


@contextmanager
def waiting(lease):
    """Take a lease in a thread; gives when it began to wait, and when it had it."""
    waits, has = threading.Event(), threading.Event()

    def work():
        with lease.held(waits.set):
            has.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield waits, has
    finally:
        thread.join()


def test_a_second_one_waits_for_the_end_of_the_first(objects):
    with ExitStack() as stack, Lease(objects, "one", FAST).held():
        waits, has = stack.enter_context(waiting(Lease(objects, "two", FAST)))
        assert waits.wait(10)
        time.sleep(1.3 * FAST.expire_s)  # it is renewed all the time
        assert not has.is_set()
    assert has.is_set()


def test_who_is_not_heard_of_loses_it_and_learns_that(objects):
    lost = Lease(objects, "one", SILENT)
    with lost.held():
        lost.confirm()
        began_s = time.monotonic()
        with Lease(objects, "two", FAST).held():
            assert time.monotonic() - began_s >= SILENT.expire_s
            content = objects.read(LEASE)
            with pytest.raises(StoreError, match="another run took over the store"):
                lost.renew()
            with pytest.raises(StoreError, match="another run took over the store"):
                lost.confirm()
    assert b'"two"' in content[0]


def test_who_slept_asks_before_it_writes(objects):
    """Awake again, it knows nothing until its next renewal."""
    asleep = Lease(objects, "one", Times(expire_s=0.3, renew_s=0.1, poll_s=0.02))
    asleep._version = asleep._acquired(None)  # held, and nothing renews it
    asleep.confirm()
    with Lease(objects, "two", SILENT._replace(expire_s=0.3)).held(), pytest.raises(StoreError, match="took over"):
        asleep.confirm()


def test_a_loser_leaves_the_lease_of_the_other_alone(objects):
    winner = Lease(objects, "two", SILENT)
    with ExitStack() as stack:
        with Lease(objects, "one", SILENT).held():
            stack.enter_context(winner.held())
        winner.renew()
    assert b'"holder":null' in objects.read(LEASE)[0]


def test_one_who_died_is_followed_at_once_by_the_same_working_copy(objects):
    Lease(objects, "one", SILENT).held().__enter__()
    began_s = time.monotonic()
    with Lease(objects, "one", SILENT).held():
        assert time.monotonic() - began_s < SILENT.expire_s


class AnswersLost(Objects):
    """Serves conditional writes, and loses the first answers: the client asks again, and is refused."""

    n_lost = 2

    def put_if(self, name, content, expected):
        written = super().put_if(name, content, expected)
        if self.n_lost:
            self.n_lost -= 1
            return super().put_if(name, content, expected)
        return written


def test_a_write_that_was_served_without_an_answer_counts():
    objects = AnswersLost(location("s3://bucket/memory"), MemoryStore())
    lease = Lease(objects, "one", SILENT)
    with lease.held():
        lease.renew()
        lease.renew()
    assert objects.n_lost == 0


class ConditionsIgnored(Objects):
    """A service that knows one of the two headers, or neither."""

    ignored = frozenset[bool]()

    def put_if(self, name, content, expected):
        if (expected is None) in self.ignored:
            return Version(self._store.put(name, content)["e_tag"], None)
        return super().put_if(name, content, expected)


@pytest.mark.parametrize("ignored", [{True}, {False}, {True, False}], ids=["If-None-Match", "If-Match", "both"])
def test_a_service_that_ignores_conditions_is_refused(ignored):
    objects = ConditionsIgnored(location("s3://bucket/memory"), MemoryStore())
    objects.ignored = ignored
    with pytest.raises(StoreError, match="a store needs conditional writes"), Lease(objects, "one", SILENT).held():
        pass
    assert objects.list() == {}


def test_a_service_that_refuses_conditions_is_refused(machines, monkeypatch):
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    objects = Objects.open(machines.at("store"))
    with pytest.raises(StoreError, match="a store needs conditional writes"), Lease(objects, "one", SILENT).held():
        pass


def test_a_lease_that_nobody_can_read_is_waited_for(objects):
    objects.put_if(LEASE, b"of a later version", None)
    began_s = time.monotonic()
    with Lease(objects, "one", FAST).held():
        assert time.monotonic() - began_s >= FAST.expire_s


def test_the_rhythm_is_set_by_one_number(monkeypatch):
    assert Times.from_environment() == (60, 10, 2)
    monkeypatch.setenv("KV_PIPELINE_LEASE_S", "6")
    assert Times.from_environment() == (6, 1, 0.2)


@pytest.mark.parametrize("text", ["0", "soon", "nan", "inf"])
def test_a_rhythm_that_makes_no_sense(monkeypatch, text):
    monkeypatch.setenv("KV_PIPELINE_LEASE_S", text)
    with pytest.raises(UsageError, match="KV_PIPELINE_LEASE_S is"):
        Times.from_environment()
