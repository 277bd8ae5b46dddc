"""Documentation says what is: generated pages are fresh, commands exist, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kv_pipeline.cli.app import app
from kv_pipeline.schemas.dictionary import columns_table, dictionary
from kv_pipeline.schemas.exports import EXPORTED_REQUESTS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
COMMAND = re.compile(r"^\s*(?:\w+=\S+ )?kv-pipeline (.+?)(?:\s{2,}.*|\s+#.*)?$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_data_dictionary_is_that_of_the_models() -> None:
    assert (ROOT / "docs" / "data-dictionary.md").read_text() == dictionary()


def test_export_formats_have_the_columns_of_the_model() -> None:
    assert columns_table(EXPORTED_REQUESTS) in (ROOT / "docs" / "export-formats.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files(page: Path) -> None:
    broken = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert broken == []


def documented_commands() -> list[str]:
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    return sorted({match for block in blocks for match in COMMAND.findall(block)})


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_have_these_options(command: str) -> None:
    name, *arguments = shlex.split(command.partition("|")[0], comments=True)
    known = CliRunner().invoke(app, [name, "--help"]).output
    options = [argument for argument in arguments if argument.startswith("--")]
    assert [option for option in options if option not in known] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "python3 dev.py test"
    assert command in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith(f"exec {command}")


def test_documents_do_not_name_hosts_of_a_workplace() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "http" not in re.sub(r"httptools|httpx\S*|httpcore\S*", "", lock)
