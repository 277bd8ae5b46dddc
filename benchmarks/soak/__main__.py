"""A landing folder that fills for minutes, a daemon at work on it, and a killer: is the store as if never killed?

    python -m benchmarks.soak --users 20 --databases 200 --minutes 6 --seed 1 --out DIR

Databases and transcripts are generated first, then arrive: whole, in pieces, renamed late, appended to, as a proxy and
a copying machine do. A `dagster-daemon` with `landing_sensor` switched on works through them. Meanwhile run processes,
the daemon, and the daemon with everything that it started are killed with SIGKILL at random; all are descendants of
this process, and nothing else is touched. When everything has arrived and the sensor finds nothing more to request, a
clean store is made by `kv-pipeline run` of the same landing folder with the same salt, and every file of tables and
states has to be the same, byte for byte. Exit code 1 if one is not, or if it never gets quiet. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from benchmarks.soak.processes import adopt_orphans
from benchmarks.soak.trial import Outcome, Plan, soak


def main() -> int:
    """Parse the command line, soak, and print what happened."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--databases", type=int, default=200, help="of all users (%(default)s)")
    parser.add_argument("--minutes", type=float, default=6, help="in which everything arrives (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything invented, and of the killer (%(default)s)")
    parser.add_argument("--kill-every-s", type=float, default=15, help="mean time between kills (%(default)s)")
    parser.add_argument("--patience-minutes", type=float, default=15, help="to get quiet afterwards (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="new folder for inbox, stores and logs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"{arguments.out} is not empty. Name a new folder.")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))  # and so end what was started
    adopt_orphans()
    plan = Plan(
        arguments.users, arguments.databases, 60 * arguments.minutes, arguments.seed,
        arguments.kill_every_s, 60 * arguments.patience_minutes,
    )  # fmt: skip
    outcome = soak(plan, arguments.out.resolve())
    shutil.rmtree(arguments.out / "stock")
    print(json.dumps(outcome._asdict(), indent=2) if arguments.json else _table(outcome))
    return 0 if outcome.is_same else 1


def _table(outcome: Outcome) -> str:
    rows = [(name.replace("_", " "), value) for name, value in outcome._asdict().items()]
    return "\n".join(f"{name:<28} {_shown(value)}" for name, value in rows)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number}" for key, number in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    os.environ.pop("DAGSTER_HOME", None)
    sys.exit(main())
