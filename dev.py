#!/usr/bin/env python3
"""Set up and run kv_pipeline from a clone, with nothing but Python 3.11 or newer.

    python3 dev.py demo     make the example's landing folder, run the pipeline on it, say where to look
    python3 dev.py test     lint, types and tests
    python3 dev.py setup    only what both need first: .venv with the locked packages and this one

Only the standard library is used here; everything else comes from requirements.lock.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / "bin"
LOCK = ROOT / "requirements.lock"
STAMP = ENVIRONMENT / "kv_pipeline.installed"
EXAMPLE = ROOT / "data" / "example"
LANDING = ROOT / "data" / "landing"
MINIMUM = (3, 11)


def main() -> int:
    """Run one of the commands; returns its exit code."""
    commands = {"demo": demo, "test": test, "setup": set_up}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(__doc__)
        return 2
    if sys.version_info < MINIMUM:
        print(f"Python {'.'.join(map(str, MINIMUM))} or newer is needed; this is {sys.version.split()[0]}.")
        return 2
    return commands[sys.argv[1]]()


def set_up() -> int:
    """Make .venv and install into it, unless that was done for this very lock file."""
    wanted = hashlib.sha256(LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return 0
    print("Setting up .venv (once; a few minutes on a slow connection) …", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [str(BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in (["-r", str(LOCK)], ["--no-deps", "-e", str(ROOT)]):
        code = run([*pip, *arguments])
        if code:
            return code
    STAMP.write_text(wanted)
    return 0


def demo() -> int:
    """Run the pipeline on the committed example."""
    if code := set_up():
        return code
    shutil.copytree(EXAMPLE, LANDING, dirs_exist_ok=True)
    print(f"The example's landing folder is {LANDING.relative_to(ROOT)}.", flush=True)
    code = run([str(BIN / "kv-pipeline"), "run"])
    print("\nWhere to look (activate with `source .venv/bin/activate`):")
    print("  kv-pipeline list | kv-pipeline validate | kv-pipeline export --out data/traces")
    print("  dagster dev -w workspace.yaml      lineage, partitions and checks on http://127.0.0.1:3000")
    return code


def test() -> int:
    """Lint, types, tests; stops at the first that fails."""
    if code := set_up():
        return code
    steps = (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["pytest", "-n", "auto"],
    )
    for step in steps:
        print(f"$ {' '.join(step)}", flush=True)
        if code := run([str(BIN / step[0]), *step[1:]]):
            return code
    return 0


def run(command: list[str]) -> int:
    """Run a command in the clone's folder."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
