"""Writing a whole landing folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kv_pipeline.demo.agents import User
from kv_pipeline.demo.client import Client
from kv_pipeline.demo.engine import run
from kv_pipeline.demo.fixed_client import FixedClient
from kv_pipeline.demo.older_client import OlderClient
from kv_pipeline.demo.plans import HOUR_MS, plans_of
from kv_pipeline.demo.proxy import Proxy
from kv_pipeline.demo.size import DemoSize
from kv_pipeline.demo.trace_log import LOG_USER, write_trace_log
from kv_pipeline.demo.truth import ConversationTruth, DemoTruth
from kv_pipeline.demo.wording import seeded

Progress = Callable[[int, int], None]

_NAMES = ("ada", "grace", "linus", "barbara", "edsger", "radia", "ken", "margaret", "donald")
_PROFILES = (("fixed-5m", "5m", 0), ("fixed-1h", "1h", 2), ("older-5m", "5m", 0))
_CLIENTS: dict[str, type[Client]] = {"fixed": FixedClient, "older": OlderClient}
_START_MS = 1_772_438_400_000
"""2 March 2026, 08:00 UTC; the seed moves it by up to a week."""
_USER_STAGGER_MS = 10 * 60_000


def write_landing(out: Path, *, size: DemoSize, seed: int, progress: Progress | None = None) -> DemoTruth:
    """Write `<out>/<user>/*.db` and `<out>/<user>/projects/**`, the same for the same size and seed.

    With plants one more user has a claude-trace log and nothing else.

    Args:
        out: The landing folder; made when missing.
        size: Its dimensions.
        seed: Of everything random in it, its date included.
        progress: Called with finished and planned turns.

    Raises:
        FileExistsError: When a user's folder is there already, so that nothing is mixed or overwritten.
    """
    users = [_user(number) for number in range(size.users)]
    for user in [*users, *([LOG_USER] if size.has_plants else [])]:
        if (out / user.name).exists():
            msg = f"{out / user.name} exists already. Choose an empty folder or remove it."
            raise FileExistsError(msg)
    plans = {user.name: plans_of(size, user.profile, seeded(seed, user.name, "plans")) for user in users}
    counter = _Counter(progress, sum(plan.turns for mine in plans.values() for plan in mine))
    start_ms = _START_MS + seeded(seed, "start").randrange(7 * 24) * HOUR_MS
    conversations: list[ConversationTruth] = []
    databases: dict[str, int] = {}
    for number, user in enumerate(users):
        client = _open_client(out, user, size, seed, counter.tick)
        begin_ms = start_ms + number * _USER_STAGGER_MS
        starts = [(plan, index, begin_ms + plan.starts_after_ms) for index, plan in enumerate(plans[user.name])]
        run([(at_ms, client.converse(plan, index, at_ms)) for plan, index, at_ms in starts])
        client.proxy.close()
        conversations += [ledger.seal() for ledger in client.ledgers]
        databases |= {f"{user.name}/{name}": rows for name, rows in sorted(client.proxy.row_counts.items())}
    logs = write_trace_log(out, size=size, seed=seed, start_ms=start_ms) if size.has_plants else {}
    return DemoTruth(tuple(conversations), databases, logs)


class _Counter:
    """Turns finished, for the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def tick(self) -> None:
        """One more turn."""
        self._done += 1
        if self._progress:
            self._progress(self._done, self._total)


def _user(number: int) -> User:
    """The user at `number`; names beyond the first few get a number."""
    name = _NAMES[number % len(_NAMES)] + (str(number // len(_NAMES)) if number >= len(_NAMES) else "")
    profile, lifetime, utc_offset_hours = _PROFILES[number % len(_PROFILES)]
    return User(name, profile, lifetime, utc_offset_hours)


def _open_client(out: Path, user: User, size: DemoSize, seed: int, tick: Callable[[], None]) -> Client:
    """A user's client, with a new database behind its proxy."""
    folder = out / user.name
    folder.mkdir(parents=True)
    rng = seeded(seed, user.name, "proxy")
    proxy = Proxy(folder, rng, user.utc_offset_hours, is_fixed=user.generation == "fixed")
    return _CLIENTS[user.generation](user, folder, proxy, size, seed, tick)
