"""Time of writing pages and pictures, and of opening the page of a long conversation in headless Chromium.

    python -m benchmarks.report [--requests 1000] [--store STORE]

Without --store, one conversation of that many requests is generated, whose prompt grows to 2,000 blocks. Chromium is
timed if it is installed: its process until the page has loaded and drawn the figures in view, and the same with an
empty page, which is the browser's own start.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from kv_pipeline.demo.landing import write_landing
from kv_pipeline.demo.size import DemoSize
from kv_pipeline.prices.loading import load_prices
from kv_pipeline.reports.page.library import runtime
from kv_pipeline.reports.write import ReportOptions, write_reports
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.store import Store

CONTEXT_TOKENS = 128_000
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--window-size=1400,1000", "--dump-dom",
)  # fmt: skip
_DRAWN = "<canvas"
_REPEATS = 3


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.store or _generated(Path(folder), options.requests)
        _measure(Store.open(root), Path(folder) / "report")


def _generated(folder: Path, n_requests: int) -> Path:
    size = DemoSize(
        users=1, conversations=1, turns=n_requests, tools_tokens=12_000, system_tokens=3_000,
        context_tokens=CONTEXT_TOKENS, has_plants=False,
    )  # fmt: skip
    write_landing(folder / "landing", size=size, seed=1)
    bring_up_to_date(Store.open(folder / "store"), Inputs(folder / "landing"))
    return folder / "store"


def _measure(store: Store, out: Path) -> None:
    started = time.perf_counter()
    runtime()
    print(f"bundling Vega's runtime, once a process: {time.perf_counter() - started:.2f} s")
    prices = load_prices()
    for with_png in (False, True):
        started = time.perf_counter()
        done = write_reports(store, out, ReportOptions(prices, with_png=with_png))
        elapsed_s = time.perf_counter() - started
        what = "pages and pictures" if with_png else "pages"
        print(f"{what}: {len(done.pages)} conversations, {done.n_requests:,} requests: {elapsed_s:.2f} s")
    largest = max(done.pages, key=lambda path: path.stat().st_size)
    print(f"largest page: {largest.stat().st_size / 1e6:.2f} MB; index {done.index.stat().st_size / 1e6:.2f} MB")
    _open(largest)


def _open(page: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("Chromium is not installed; opening a page was not timed.")
        return
    empty = page.with_name("empty.html")
    empty.write_text("<!doctype html><title>empty</title>")
    for name, path in (("empty page", empty), ("largest page", page)):
        seconds = [_opened_s(chromium, path, must_draw=path is page) for _ in range(_REPEATS)]
        print(f"Chromium, {name}: {', '.join(f'{s:.2f}' for s in seconds)} s")


def _opened_s(chromium: str, page: Path, *, must_draw: bool) -> float:
    """Seconds of a Chromium process that loads a page, lets it draw, and prints its document."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *_FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=2000", page.as_uri()]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        elapsed_s = time.perf_counter() - started
    assert not must_draw or _DRAWN in done.stdout, "the page drew no figure"
    return elapsed_s


if __name__ == "__main__":
    main()
