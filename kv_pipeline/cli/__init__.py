"""The command line. Only what `--help` needs is imported before a command runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of `kv-pipeline`; exits with 0, 1 (some input was left out, or the work failed) or 2 (usage)."""
    from kv_pipeline.cli.app import run_app

    run_app()
