"""How time, memory and store grow with the input: 1, 10 and 100 times a small fleet.

    python -m benchmarks.growth                              1, 10 and 100 times the users
    python -m benchmarks.growth --by conversations           of each user
    python -m benchmarks.growth --by turns --factors 1 3 10  of each conversation
    python -m benchmarks.growth --landing DIR                a landing folder that is there, of any size

Each size is generated, then `kv-pipeline run`'s work is done on it in a process of its own that has imported everything
and run once on a tiny input. "s" is wall time, "cpu s" that of the process, which a busy machine changes less. The
exponent e says that cpu time grew like the new text to the power of e; new text is what requests say that none of the
same database said before; it grows with turns, and the database with their square. Then the run is repeated with
nothing new, and with one database more.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BASE = {"users": 3, "conversations": 3, "turns": 10}
MAX_EXPONENT = 1.1
COLUMNS = ("factor", "conversations", "database MB", "new text MB", "s", "cpu s", "peak MB", "store MB", "exponent",
           "nothing new s", "one more s")  # fmt: skip


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=list(BASE), default="users", help="what there is more of")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 10, 100], help="times the base")
    for name, value in BASE.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{name} of the base (%(default)s)")
    parser.add_argument("--landing", type=Path, help="measure this landing folder, which stays as it is")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_measure(*arguments.child)))
        return
    print(" ".join(f"{name:>13}" for name in COLUMNS))
    if arguments.landing:
        with tempfile.TemporaryDirectory(prefix="kv-growth-") as folder:
            measured = {"factor": 1, "exponent": "", **_measured_apart(arguments.landing, Path(folder) / "store")}
        print(" ".join(f"{_shown(measured[name]):>13}" for name in COLUMNS))
        return
    before: dict[str, Any] | None = None
    for factor in arguments.factors:
        size = {name: getattr(arguments, name) for name in BASE}
        size[arguments.by] *= factor
        measured = {"factor": factor, **_measure_apart(size)}
        measured["exponent"] = _exponent(before, measured) if before else ""
        print(" ".join(f"{_shown(measured[name]):>13}" for name in COLUMNS), flush=True)
        before = measured


def _shown(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _exponent(before: dict[str, Any], after: dict[str, Any]) -> str:
    exponent = math.log(after["cpu s"] / before["cpu s"]) / math.log(after["new text MB"] / before["new text MB"])
    return f"{exponent:.2f}{'' if exponent <= MAX_EXPONENT else ' (over)'}"


def _measure_apart(size: dict[str, int]) -> dict[str, Any]:
    from kv_pipeline.demo import fleet, write_landing

    with tempfile.TemporaryDirectory(prefix="kv-growth-") as folder:
        inbox, store = Path(folder) / "inbox", Path(folder) / "store"
        write_landing(inbox, size=fleet(**size), seed=1)
        return _measured_apart(inbox, store)


def _measured_apart(inbox: Path, store: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth", "--child", str(inbox), str(store)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(inbox: Path, store_path: Path) -> dict[str, Any]:
    from kv_pipeline.demo import EXAMPLE, write_landing
    from kv_pipeline.runner import Inputs, bring_up_to_date
    from kv_pipeline.store import Store

    def run(on: Path) -> tuple[float, float]:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        bring_up_to_date(Store.open(store_path), Inputs(on))
        return time.perf_counter() - begun, time.process_time() - begun_cpu

    tiny = store_path.with_name("tiny")
    write_landing(tiny, size=EXAMPLE, seed=2)
    bring_up_to_date(Store.open(store_path.with_name("tiny store")), Inputs(tiny))
    elapsed_s, cpu_s = run(inbox)
    measured = {
        **_sizes(inbox, store_path),
        "s": elapsed_s,
        "cpu s": cpu_s,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "nothing new s": run(inbox)[0],
    }
    if inbox.parent != store_path.parent:  # not ours
        return {**measured, "one more s": ""}
    shutil.copytree(tiny / "ada", inbox / "zoe")
    return {**measured, "one more s": run(inbox)[0]}


def _sizes(inbox: Path, store_path: Path) -> dict[str, Any]:
    import polars as pl

    segments = pl.scan_parquet(store_path / "segments/**/*.parquet", hive_partitioning=False)
    text_bytes = segments.select(pl.col("text").str.len_bytes().sum()).collect(engine="streaming").item()
    files = [path for path in store_path.rglob("*") if path.is_file()]
    return {
        "conversations": sum(1 for path in files if path.parent.parent.name == "traces"),
        "database MB": sum(path.stat().st_size for path in inbox.rglob("*.db")) / 1e6,
        "new text MB": text_bytes / 1e6,
        "store MB": sum(path.stat().st_size for path in files) / 1e6,
    }


if __name__ == "__main__":
    main()
