"""`python -m kv_pipeline.demo`: write a landing folder."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from kv_pipeline.demo import BENCHMARK, EXAMPLE, DemoTruth, write_landing

_PRESETS = {"example": EXAMPLE, "benchmark": BENCHMARK}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, write the folder, and say what is in it."""
    options = _parser().parse_args(arguments)
    given = {name: getattr(options, name) for name in ("users", "conversations", "turns")}
    size = replace(_PRESETS[options.preset], **{name: value for name, value in given.items() if value is not None})
    try:
        truth = write_landing(options.out, size=size, seed=options.seed)
    except FileExistsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(_summary(truth))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kv_pipeline.demo", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="landing folder to write")
    parser.add_argument("--preset", choices=sorted(_PRESETS), default="example", help="size (default: %(default)s)")
    parser.add_argument("--users", type=int, help="number of users, instead of the preset's")
    parser.add_argument("--conversations", type=int, help="conversations of each user")
    parser.add_argument("--turns", type=int, help="main turns of an ordinary conversation")
    parser.add_argument("--seed", type=int, default=1, help="seed (default: %(default)s)")
    return parser


def _summary(truth: DemoTruth) -> str:
    lines = [f"{path}: {rows} rows" for path, rows in (truth.databases | truth.logs).items()]
    others = ", ".join(f"{count} {reason}" for reason, count in truth.unindexed.items())
    lines.append(f"{len(truth.conversations)} conversations, {truth.turns} turns; other rows: {others or 'none'}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
