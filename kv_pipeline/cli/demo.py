"""`kv-pipeline demo`."""

from __future__ import annotations

from pathlib import Path

from kv_pipeline import progress
from kv_pipeline.cli.display import console, showing_progress
from kv_pipeline.demo import BENCHMARK, EXAMPLE, write_landing
from kv_pipeline.errors import UsageError

_PRESETS = {"example": EXAMPLE, "benchmark": BENCHMARK}


def demo_command(out: Path, preset: str, seed: int) -> None:
    """Make a landing folder of invented traffic."""
    if preset not in _PRESETS:
        raise UsageError(f"There is no preset {preset!r}. Choose one of {', '.join(_PRESETS)}.")
    with showing_progress():
        advance = progress.counter("demo", 0)
        try:
            truth = write_landing(out, size=_PRESETS[preset], seed=seed, progress=lambda *_: advance(1))
        except FileExistsError as error:
            raise UsageError(f"{out} already has users of the demo. Remove it, or name another --out.") from error
    console().print(f"{sum(truth.databases.values()):,} recorded requests of {truth.turns:,} turns in {out}.")
