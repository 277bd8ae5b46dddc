"""What may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kv_pipeline

PACKAGE = Path(kv_pipeline.__file__).parent
CORE = sorted((PACKAGE / "core").glob("*.py"))
FORBIDDEN = {"dagster", "sqlite3", "os", "time", "random", "secrets", "shutil", "tempfile", "subprocess", "socket",
             "glob", "requests", "urllib"}  # fmt: skip
FILE_CALLS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "mkdir", "read_parquet",
              "write_parquet", "scan_parquet", "iterdir", "stat", "now", "utcnow", "today", "uuid4"}  # fmt: skip
MAY_READ_THE_VOCABULARY = "tokenizer.py"
SHELLS = ("kv_pipeline.steps", "kv_pipeline.defs", "kv_pipeline.cli", "kv_pipeline.store", "kv_pipeline.landing",
          "kv_pipeline.export", "kv_pipeline.inspection", "kv_pipeline.prices", "kv_pipeline.sources",
          "kv_pipeline.reports", "kv_pipeline.runner")  # fmt: skip


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def called(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_has_no_clock_no_files_no_chance(path):
    names = set(imported(path))
    assert {name.partition(".")[0] for name in names} & FORBIDDEN == set()
    assert [name for name in names if name.startswith(SHELLS)] == []
    allowed = {"read_bytes"} if path.name == MAY_READ_THE_VOCABULARY else set()
    assert set(called(path)) & FILE_CALLS <= allowed


def test_the_rule_would_notice(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("import os.path\nfrom time import time\nPath('x').write_text('y')\n")
    assert {"os.path", "time"} <= set(imported(path))
    assert "write_text" in set(called(path))


SHARED_SOURCE = "anthropic_messages"


@pytest.mark.parametrize(
    "source", sorted(p.name for p in (PACKAGE / "sources").iterdir() if (p / "README.md").exists())
)
def test_sources_do_not_know_each_other(source):
    names = {name for path in (PACKAGE / "sources" / source).glob("*.py") for name in imported(path)}
    folders = {name.split(".")[2] for name in names if name.startswith("kv_pipeline.sources.")}
    others = {p.name for p in (PACKAGE / "sources").iterdir() if p.is_dir()} - {source, SHARED_SOURCE}
    assert folders & others == set()


def test_what_sources_share_knows_none_of_them():
    names = {name for path in (PACKAGE / "sources" / SHARED_SOURCE).glob("*.py") for name in imported(path)}
    folders = {name.split(".")[2] for name in names if name.startswith("kv_pipeline.sources.")}
    assert folders <= {SHARED_SOURCE, "interning"}


@pytest.mark.parametrize("folder", ["core", "prices", "sources", "steps", "schemas", "export", "inspection", "reports"])
def test_only_the_shells_know_dagster(folder):
    modules = {path.name: set(imported(path)) for path in (PACKAGE / folder).rglob("*.py")}
    assert [name for name, names in modules.items() if any(n.startswith("dagster") for n in names)] == []


def loaded(code):
    """Modules of the first level that a fresh interpreter has loaded after running the code."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


HEAVY = {"polars", "pandera", "pyarrow", "numpy", "dagster", "tiktoken", "gigatoken", "genai_prices", "httpx2",
         "jsonschema_rs", "obstore"}  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["export", "--help"],
        ["analyze", "--help"],
        ["report", "--help"],
        ["monitor", "--help"],
        ["inspect", "--help"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        f"sys.argv = ['kv-pipeline', *{arguments}]\n"
        "from kv_pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
    )
    assert loaded(code) & HEAVY == set()


def test_an_import_would_be_noticed():
    assert "polars" in loaded("import polars")


def test_core_loads_no_dagster_and_no_price_list():
    modules = "\n".join(f"import kv_pipeline.core.{path.stem}" for path in CORE if path.stem != "__init__")
    assert loaded(modules) & {"dagster", "genai_prices"} == set()


def test_who_uses_folders_loads_nothing_for_buckets():
    modules = "import kv_pipeline.runner, kv_pipeline.cli.run, kv_pipeline.cli.retention"
    assert loaded(modules) & {"obstore"} == set()


def test_importing_the_loader_loads_no_price_list():
    assert "genai_prices" not in loaded("import kv_pipeline.prices.loading, kv_pipeline.prices.published")
