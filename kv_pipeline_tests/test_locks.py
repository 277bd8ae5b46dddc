"""Who may work on a store at the same time."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path

import pytest

from kv_pipeline.locks import WRITER_LOCK
from kv_pipeline.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


class Other:
    """Another process, as far as file locks are concerned."""

    def __init__(self, store: Store, stack: contextlib.ExitStack) -> None:
        self._file = stack.enter_context((store.root / WRITER_LOCK).open("a+"))

    def gets(self, mode: int) -> bool:
        """Whether it gets the lock; it keeps it then."""
        try:
            fcntl.flock(self._file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lets_go(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


@pytest.fixture
def others(store: Store):
    with contextlib.ExitStack() as stack:
        yield Other(store, stack), Other(store, stack)


def test_a_writer_is_alone(store, others):
    with store.writing(), store.alone() as is_alone:
        assert is_alone
        assert not others[0].gets(fcntl.LOCK_SH)
    assert others[0].gets(fcntl.LOCK_EX)


def test_a_writer_may_also_share(store, others):
    with store.writing():
        with store.sharing(), store.writing():
            assert not others[0].gets(fcntl.LOCK_SH)
        assert not others[0].gets(fcntl.LOCK_SH)


def test_those_who_share_keep_writers_out(store, others):
    with store.sharing():
        assert others[0].gets(fcntl.LOCK_SH)
        assert not others[1].gets(fcntl.LOCK_EX)


def test_waiting_is_said(store, others):
    assert others[0].gets(fcntl.LOCK_SH)
    waited = []

    def let_go() -> None:
        waited.append(True)
        others[0].lets_go()

    with store.writing(let_go):
        assert waited == [True]


def test_the_last_of_those_who_share_is_alone(store, others):
    assert others[0].gets(fcntl.LOCK_SH)
    with store.sharing():
        with store.alone() as is_alone:
            assert not is_alone
        others[0].lets_go()
        with store.alone() as is_alone:
            assert is_alone
            assert not others[0].gets(fcntl.LOCK_SH)
        assert others[0].gets(fcntl.LOCK_SH)


def test_a_writer_lends_and_takes_back(store, others):
    with store.writing():
        with store.lending():
            assert others[0].gets(fcntl.LOCK_SH)
            assert not others[1].gets(fcntl.LOCK_EX)
            others[0].lets_go()
        assert not others[0].gets(fcntl.LOCK_SH)


def test_a_failure_while_lending_leaves_nothing_locked(store, others):
    with pytest.raises(RuntimeError), store.writing(), store.lending():
        raise RuntimeError
    assert others[0].gets(fcntl.LOCK_EX)


def test_nobody_is_alone_who_shares(store):
    with store.sharing(), pytest.raises(RuntimeError), store.writing():
        pass
