"""`kv-pipeline demo`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kv_pipeline import progress
from kv_pipeline.cli.display import console, showing_progress
from kv_pipeline.demo import BENCHMARK, EXAMPLE, fleet, write_landing
from kv_pipeline.errors import UsageError

_PRESETS = {"example": EXAMPLE, "benchmark": BENCHMARK, "fleet": fleet()}


def demo_command(out: Path, preset: str | None, seed: int, dimensions: Mapping[str, int | None]) -> None:
    """Make a landing folder of invented traffic.

    Args:
        out: The landing folder.
        preset: Name of a size; if dimensions are given a fleet's, else the example's.
        seed: Same seed, same traffic.
        dimensions: Users, conversations and turns where they are not the preset's.
    """
    given = {name: value for name, value in dimensions.items() if value is not None}
    name = preset or ("fleet" if given else "example")
    if name not in _PRESETS:
        raise UsageError(f"There is no preset {name!r}. Choose one of {', '.join(_PRESETS)}.")
    size = fleet(**given) if name == "fleet" else replace(_PRESETS[name], **given)  # type: ignore[arg-type]
    with showing_progress():
        advance = progress.counter("demo", 0)
        try:
            truth = write_landing(out, size=size, seed=seed, progress=lambda *_: advance(1))
        except FileExistsError as error:
            raise UsageError(f"{out} already has users of the demo. Remove it, or name another --out.") from error
    console().print(f"{sum(truth.databases.values()):,} recorded requests of {truth.turns:,} turns in {out}.")
