"""The committed example is what the generator makes."""

from __future__ import annotations

from pathlib import Path

from kv_pipeline_tests.demo.rows import databases, dump

EXAMPLE = Path(__file__).parents[2] / "data" / "example"
LIMIT_BYTES = 1_500_000


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.json*") if p.is_file()}


def test_transcripts_are_as_generated(landing):
    assert files(EXAMPLE) == files(landing.root)


def test_rows_are_as_generated(landing):
    committed = {str(p.relative_to(EXAMPLE)): dump(p) for p in databases(EXAMPLE)}
    assert committed == {str(p.relative_to(landing.root)): dump(p) for p in databases(landing.root)}


def test_example_is_small():
    assert 0 < sum(p.stat().st_size for p in EXAMPLE.rglob("*") if p.is_file()) < LIMIT_BYTES
