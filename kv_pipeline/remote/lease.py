"""The writer's lease on a store in a bucket: an object that one process at a time writes to.

It is only ever written on condition that it is what was last seen of it. Its holder renews it. Who waits takes it when
it was given back, or has not changed for a while as the one who waits sees it: no clocks are compared. A holder that
finds it changed has lost it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from kv_pipeline.environment import number
from kv_pipeline.errors import KvPipelineError, StoreError
from kv_pipeline.remote.objects import Objects, Version, unconditional

LEASE: Final = "writer.lease"
EXPIRY_VARIABLE: Final = "KV_PIPELINE_LEASE_S"
DEFAULT_EXPIRY_S: Final = 60.0
LEAST_EXPIRY_S: Final = 1.0
_MISSED: Final = 2
"""Renewals that may be missed before nothing is written without asking."""
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while a machine sleeps, where there is one that does."""


class Times(NamedTuple):
    """Rhythm of a lease, in seconds.

    Attributes:
        expire_s: How long it may stay unchanged before somebody else takes it.
        renew_s: How often its holder changes it.
        poll_s: How often one who waits looks.
    """

    expire_s: float
    renew_s: float
    poll_s: float

    @classmethod
    def of_expiry(cls, expire_s: float) -> Times:
        """The usual proportions: some renewals may fail."""
        return cls(expire_s, expire_s / 6, expire_s / 30)

    @classmethod
    def from_environment(cls) -> Times:
        """As `KV_PIPELINE_LEASE_S` says; the same for all who write the store.

        Raises:
            UsageError: It is no number of at least a second.
        """
        return cls.of_expiry(number(EXPIRY_VARIABLE, "seconds", at_least=LEAST_EXPIRY_S) or DEFAULT_EXPIRY_S)


class _Content(msgspec.Struct, frozen=True):
    """What the object says.

    Attributes:
        holder: Who has the lease; None if nobody.
        token: Of one time of holding it.
        beat: Makes each renewal another content.
    """

    holder: str | None
    token: str
    beat: int


class Lease:
    """A lease, to be held once.

    Args:
        objects: Where the store is.
        holder: Name of the working copy; a predecessor of the same name is dead, as its writer lock was free.
        times: Its rhythm.
    """

    def __init__(self, objects: Objects, holder: str, times: Times) -> None:
        self._objects, self._holder, self._times = objects, holder, times
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._version: Version | None = None
        self._renewed_s = 0.0
        self._changing = threading.Lock()
        self._end = threading.Event()

    @contextlib.contextmanager
    def held(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lease, and renew it until the end.

        Args:
            on_wait: Called if another process has it, before waiting.

        Raises:
            StoreError: The store can't be reached.
        """
        self._version = self._acquired(on_wait)
        renewing = threading.Thread(target=self._renew_regularly, name="lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._end.set()
            renewing.join()
            self._give_back()

    def renew(self) -> None:
        """Show that the holder lives.

        Raises:
            StoreError: The lease was lost, or the store can't be reached.
        """
        with self._changing:
            self._check()
            self._version = self._written(self._holder, self._version)
            self._check()

    def confirm(self) -> None:
        """Make sure of the lease before something is written; after a while in which it was not renewed, ask.

        Raises:
            StoreError: As `renew`.
        """
        self._check()
        if _now_s() - self._renewed_s > _MISSED * self._times.renew_s:  # the process, or the machine, was asleep
            self.renew()

    def _check(self) -> None:
        if self._version is None:
            raise StoreError(
                f"{self._objects.url}: another run took over the store, as nothing had been heard of this one. "
                "Run again: what was published stays."
            )

    def _acquired(self, on_wait: Callable[[], None] | None) -> Version:
        watched, since_s = None, 0.0
        while True:
            found = self._objects.read(LEASE)
            version = found[1] if found else None
            if found and not self._is_free(found[0]):
                now_s = time.monotonic()
                if watched is None and on_wait:
                    on_wait()
                if version != watched:
                    watched, since_s = version, now_s
                if now_s - since_s < self._times.expire_s:
                    time.sleep(self._times.poll_s)
                    continue
            taken = self._written(self._holder, version)
            if taken is not None:
                return taken if version else self._tested(taken)

    def _tested(self, first: Version) -> Version:
        """The lease of a new store, if the service does refuse what it should: some ignore what they don't know."""
        second = self._written(self._holder, first)
        if second is None or any(self._objects.put_if(LEASE, b"", outdated) for outdated in (None, first)):
            self._objects.delete(LEASE)
            raise unconditional(self._objects.url)
        return second

    def _is_free(self, content: bytes) -> bool:
        try:
            return msgspec.json.decode(content, type=_Content).holder in {None, self._holder}
        except msgspec.MsgspecError:
            return False  # of another version, perhaps: wait until it stands still

    def _written(self, holder: str | None, expected: Version | None) -> Version | None:
        """Write the object; None if it is somebody else's by now."""
        self._beat += 1
        began_s = _now_s()
        content = msgspec.json.encode(_Content(holder, self._token, self._beat))
        version = self._objects.put_if(LEASE, content, expected)
        if version is None:  # unless an earlier request of ours was served, and its answer lost
            found = self._objects.read(LEASE)
            version = found[1] if found and self._is_mine(found[0]) else None
        if version is not None:
            self._renewed_s = began_s
        return version

    def _is_mine(self, content: bytes) -> bool:
        try:
            return msgspec.json.decode(content, type=_Content).token == self._token
        except msgspec.MsgspecError:
            return False

    def _renew_regularly(self) -> None:
        while not self._end.wait(self._times.renew_s):
            # What is lost is told before the next object is written; what can't be reached may be so again soon.
            with contextlib.suppress(KvPipelineError):
                self.renew()

    def _give_back(self) -> None:
        if self._version is not None:
            with contextlib.suppress(KvPipelineError):  # then it expires
                self._written(None, self._version)


def _now_s() -> float:
    return time.clock_gettime(_CLOCK)
