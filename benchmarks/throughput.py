"""Throughput and memory of the pipeline's path beside the reference, on the same input in the same run.

    python -m benchmarks.throughput                      generated database of about 300 MB
    python -m benchmarks.throughput --landing DIR ...    users' landing folders, each with databases and projects/

Each side runs in a process of its own, one after the other, with nothing cached. Imports are not counted; loading the
tokenizer's vocabulary is. The pipeline's path is what its assets do from opening the databases to written traces:
reading, segments, twins, transcripts, tokens, block hashes, traces, every table checked and synced to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPEATS = 3


def main() -> None:
    """Measure each landing folder and print a table."""
    arguments = _arguments()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.landing[0], arguments.store)))
        return
    with tempfile.TemporaryDirectory(prefix="kv-benchmark-") as folder:
        landings = arguments.landing or [_generated(Path(folder) / "landing")]
        print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}; of {arguments.repeats} runs of the pipeline")
        columns = ("MB", 7), ("run", 18), ("seconds", 10), ("MB/s", 8), ("peak MB", 9), ("ratio", 8), ("store/db", 10)
        print("input".ljust(12) + "".join(name.rjust(width) for name, width in columns))
        for landing in landings:
            _compare(landing, Path(folder), arguments.repeats, arguments.skip_reference)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--landing", type=Path, nargs="+", default=[], help="landing folders of one user each")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs of the pipeline; the reference runs once")
    parser.add_argument("--skip-reference", action="store_true", help="measure the pipeline alone")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _generated(out: Path) -> Path:
    from kv_pipeline.demo import BENCHMARK, write_landing

    write_landing(out, size=BENCHMARK, seed=1)
    return next(path for path in out.iterdir() if path.is_dir())


def _compare(landing: Path, folder: Path, repeats: int, skip_reference: bool) -> None:
    """The reference, which takes long, runs between two halves of the pipeline's runs: machines change their pace."""
    database_mb = sum(path.stat().st_size for path in landing.rglob("*.db")) / 1e6

    def pipeline(number: int) -> dict[str, Any]:
        return _measure("pipeline", landing, folder / f"store-{landing.name}-{number}")

    runs = [pipeline(number) for number in range(repeats // 2)]
    reference = None if skip_reference else _measure("reference", landing, folder / "unused")
    runs = sorted(runs + [pipeline(number) for number in range(repeats // 2, repeats)], key=lambda run: run["seconds"])
    best, median = runs[0], runs[len(runs) // 2]
    for name, run in (("reference", reference), ("pipeline, best", best), ("pipeline, median", median)):
        if run is None:
            continue
        ratio = f"{reference['seconds'] / run['seconds']:.1f}" if reference else ""
        share = f"{run['store_mb'] / database_mb:.3f}" if run.get("store_mb") else ""
        print(
            f"{landing.name:<12}{database_mb:>7.1f}{name:>18}{run['seconds']:>10.2f}"
            f"{database_mb / run['seconds']:>8.1f}{run['peak_mb']:>9.0f}{ratio:>8}{share:>10}",
            flush=True,
        )
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best["parts"].items())
    print(" " * 19 + "parts of the best: " + parts)


def _measure(side: str, landing: Path, store: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.throughput", "--side", side]
    command += ["--landing", str(landing), "--store", str(store)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def _reference(landing: Path, _store: Path) -> dict[str, Any]:
    import tiktoken  # noqa: F401  (imports are not counted)

    from benchmarks.reference import reference_pass

    started = time.perf_counter()
    for database in sorted(landing.rglob("*.db")):
        reference_pass(database)
    return {"seconds": time.perf_counter() - started, "peak_mb": _peak_mb()}


def _pipeline(landing: Path, store_path: Path) -> dict[str, Any]:
    import gigatoken  # noqa: F401  (imports are not counted)

    from kv_pipeline.landing import direct
    from kv_pipeline.steps import conversations, databases, index, plan
    from kv_pipeline.store import Store

    parts: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        parts[name] = parts.get(name, 0.0) + time.perf_counter() - started

    store = Store.open(store_path)
    found = direct([*sorted(landing.rglob("*.db")), landing / "projects"])
    for key, file in found.databases.items():
        timed("read databases", lambda file=file: databases.ingest_database(store, file))
        timed("message index", lambda key=key: databases.index_database(store, key))
    for user in found.users:
        timed("conversation index", lambda user=user: index.index_user(store, user, plan.transcripts_of(found, user)))
    keys = plan.stale_conversations(store)
    timed("tokens and blocks", lambda: conversations.tokenize_conversations(store, keys))
    timed("traces", lambda: conversations.trace_conversations(store, keys))
    store_mb = sum(path.stat().st_size for path in store_path.rglob("*") if path.is_file()) / 1e6
    return {"seconds": sum(parts.values()), "peak_mb": _peak_mb(), "store_mb": store_mb, "parts": parts}


def _peak_mb() -> float:
    """Of this process and those it has started: their peaks added up, though they need not have come together."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + sum(map(_peak_mb_of, _children()))


def _children() -> list[str]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [child for children in tasks for child in children.read_text().split()]


def _peak_mb_of(process_id: str) -> float:
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    return int(peak) / 1024


SIDES = {"reference": _reference, "pipeline": _pipeline}

if __name__ == "__main__":
    main()
