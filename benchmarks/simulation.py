"""Throughput of the blocks model at scale, and the analysis of a whole set of traces.

    python -m benchmarks.simulation                  invented traces
    python -m benchmarks.simulation --traces DIR     published traces, or our exports

The traces are repeated under new ids until there are as many as in the published set (739), in a temporary folder.
Three things are measured, each in a process of its own:

* `runs`: one pass over one copy of the traces that gives every lifetime and every capacity, then the curves;
* `naive`: the same requests block by block through an ordered dictionary, for one capacity, which must hit the same;
* `analyze`: `kv-pipeline analyze` on the whole set in both scopes, reading included.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

PUBLISHED_TRACES = 739
CAPACITY_BLOCKS = 4096
BLOCK_SIZE = 64


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.traces)))
        return
    with tempfile.TemporaryDirectory(prefix="kv-simulation-") as folder:
        traces = arguments.traces or _invented(Path(folder) / "invented")
        runs, naive = (_measure(side, traces) for side in ("runs", "naive"))
        assert runs["lru_hit_blocks"] == naive["lru_hit_blocks"], "the fast and the naive cache hit different blocks"
        for name, side in (("runs: all lifetimes and capacities", runs), ("naive: one capacity", naive)):
            rate = side["references"] / side["seconds"] / 1e6
            print(f"{name:<36}{side['references']:>12,} references {side['seconds']:>7.2f} s {rate:>7.1f} M/s")
        print(f"{'curves, Belady at each power of two':<36}{runs['curves_seconds']:>31.2f} s")
        large = _repeated(traces, Path(folder) / "large", arguments.n_traces)
        size_mb = sum(path.stat().st_size for path in large.iterdir()) / 1e6
        for scope in ("conversation", "fleet"):
            done = _measure(scope, large)
            print(
                f"analyze --scope {scope:<20}{done['n_traces']} traces, {done['n_requests']:,} requests, "
                f"{done['references']:,} references, {size_mb:.0f} MB: {done['seconds']:.1f} s, "
                f"peak {done['peak_mb']:.0f} MB",
                flush=True,
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder of trace JSON; invented ones without")
    parser.add_argument("--n-traces", type=int, default=PUBLISHED_TRACES, help="size of the large set")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(side: str, traces: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.simulation", "--side", side, "--traces", str(traces)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def _repeated(traces: Path, out: Path, n_traces: int) -> Path:
    """The same traces under new ids; their block ids are local, so copies share nothing."""
    out.mkdir()
    files = sorted(traces.glob("*.json"))
    for number in range(n_traces):
        trace = json.loads(files[number % len(files)].read_bytes()) | {"id": f"copy_{number:04d}"}
        (out / f"copy_{number:04d}.json").write_text(json.dumps(trace, separators=(",", ":")))
    return out


def _invented(out: Path, n_traces: int = 56) -> Path:
    """Conversations that grow, pause, are compacted and start sub-agents; about as large as published ones."""
    out.mkdir()
    chance = random.Random(1)  # noqa: S311  (repeatable, not secret)
    for number in range(n_traces):
        trace = {"id": f"invented_{number:03d}", "models": ["m"], "block_size": BLOCK_SIZE, "hash_id_scope": "local"}
        (out / f"{trace['id']}.json").write_text(json.dumps(trace | {"requests": _conversation(chance)}))
    return out


def _conversation(chance: random.Random) -> list[dict[str, Any]]:
    path, next_id, time_s = list(range(1, 251)), 251, 0.0
    entries: list[dict[str, Any]] = []
    for _ in range(chance.randint(20, 160)):
        if len(path) > chance.randint(2500, 5000):
            path = path[:250]
        n_new = chance.randint(1, 60)
        path = path + list(range(next_id, next_id + n_new))
        next_id += n_new
        entries.append({"t": time_s, "type": "s", "model": "m", "in": BLOCK_SIZE * len(path), "hash_ids": path})
        if chance.random() < 0.02:
            below = {"t": 0.0, "type": "n", "model": "m", "in": BLOCK_SIZE * 200, "hash_ids": path[:200]}
            entries.append({"t": time_s, "type": "subagent", "agent_id": f"a{next_id}", "requests": [below]})
        time_s += chance.choice([5, 10, 30, 60, 400, 4000])
    return entries


def _uses(traces: Path) -> Iterator[tuple[int, list[Any]]]:
    """Per trace how many blocks there are and its requests, read before the clock starts."""
    from kv_pipeline.core.simulate import Use
    from kv_pipeline.sources.trace_json.reader import read_trace

    for path in sorted(traces.glob("*.json")):
        blocks = read_trace(path).blocks
        yield len(blocks.new_blocks), list(map(Use, blocks.models, blocks.times_s.tolist(), blocks.paths()))


def _runs(traces: Path) -> dict[str, Any]:
    from kv_pipeline.core.reuse import measure_reuse
    from kv_pipeline.core.reuse_curves import PREFILL_LIFETIMES_S, lru_hits, reuse_frames

    inputs = list(_uses(traces))
    started = time.perf_counter()
    reuses = [
        measure_reuse(uses, n_blocks, block_size=BLOCK_SIZE, prompt_tokens=0, lifetimes_s=PREFILL_LIFETIMES_S)
        for n_blocks, uses in inputs
    ]
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    reuse_frames(reuses)
    return {
        "seconds": seconds,
        "curves_seconds": time.perf_counter() - started,
        "references": sum(reuse.n_references for reuse in reuses),
        "lru_hit_blocks": sum(int(lru_hits(reuse, [CAPACITY_BLOCKS])[0]) for reuse in reuses),
    }


def _naive(traces: Path) -> dict[str, Any]:
    inputs = [[(use.cache, use.path.tolist()) for use in uses] for _, uses in _uses(traces)]
    started = time.perf_counter()
    hit_blocks = sum(naive_lru_hit_blocks(uses, CAPACITY_BLOCKS) for uses in inputs)
    seconds = time.perf_counter() - started
    references = sum(len(path) for uses in inputs for _, path in uses)
    return {"seconds": seconds, "references": references, "lru_hit_blocks": hit_blocks}


def naive_lru_hit_blocks(uses: list[tuple[Hashable, list[int]]], capacity: int) -> int:
    """LRU caches of one capacity, block by block; each request's leaf end is touched first."""
    caches: dict[Hashable, OrderedDict[int, None]] = {}
    hits = 0
    for name, path in uses:
        cache = caches.setdefault(name, OrderedDict())
        hits += next((n for n, block in enumerate(path) if block not in cache), len(path))
        for block in reversed(path):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits


def _analyze(scope: str) -> Callable[[Path], dict[str, Any]]:
    def analyze(traces: Path) -> dict[str, Any]:
        run = "from kv_pipeline.cli import main; main()"
        command = [sys.executable, "-c", run, "analyze", str(traces), "--scope", scope, "--json", "--limit", "1"]
        started = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        total = json.loads(done.stdout)["total"]
        counts = {"n_traces": total["n_traces"], "n_requests": total["n_requests"]}
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        return counts | {"seconds": seconds, "peak_mb": peak_mb, "references": total["block_references"]}

    return analyze


SIDES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "runs": _runs, "naive": _naive, "conversation": _analyze("conversation"), "fleet": _analyze("fleet"),
}  # fmt: skip

if __name__ == "__main__":
    main()
