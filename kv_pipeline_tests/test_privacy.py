"""Markers in every place of the landing data where somebody's text can stand: none may turn up anywhere else.

One place may hold them, the table `segments`. Names of files, users and models are no content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kv_pipeline.cli import main
from kv_pipeline.defs.alerts import DSN_VARIABLE, WEBHOOK_VARIABLE
from kv_pipeline.defs.build import build_defs
from kv_pipeline.defs.instance import open_instance
from kv_pipeline.defs.resources import PipelineResource
from kv_pipeline.store import Store
from kv_pipeline_tests.alerts.conftest import Received, server
from kv_pipeline_tests.defs.conftest import QUIET, Place
from kv_pipeline_tests.defs.test_nightly import alert_tick
from kv_pipeline_tests.sources.factories import (
    LOOSE_SCHEMA,
    make_body,
    make_database,
    make_log,
    make_pair,
    make_record,
    make_response,
    make_row,
    make_transcript,
)
from kv_pipeline_tests.upkeep.conftest import mentions, text_in

__all__ = ["server"]
MARK = "zqxmark"
_numbers = iter(range(10_000))


def mark() -> str:
    """A marker dressed as HTML, a spreadsheet's formula and SQL."""
    return f'=HYPERLINK("x")<script>{MARK}{next(_numbers)}</script>\'; DROP TABLE requests; --'


def marked_body(**changes: Any) -> str:
    tool = {"name": "Bash", "description": mark(), "input_schema": {"type": "object", mark(): mark()}}
    system = [{"type": "text", "text": mark() * 40, "cache_control": {"type": "ephemeral"}}]
    messages = [
        {"role": "user", "content": mark() * 30},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": mark(), "signature": mark()},
            {"type": "tool_use", "id": mark(), "name": "Bash", "input": {"command": mark()}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": mark(), mark(): mark()}]},
        mark(),
        {"role": mark(), "content": [{"type": mark(), "text": mark()}]},
    ]  # fmt: skip
    return make_body(tools=[tool], system=system, messages=messages, **{mark(): mark()} | changes)


def plant(inbox: Path) -> None:
    folder = inbox / "mallory"
    folder.mkdir(parents=True)
    answer = json.loads(make_response("m1"))
    answer["body"]["content"] = [{"type": "text", "text": mark()}, {"type": mark()}]
    answer["body"]["stop_reason"] = mark()
    answer["headers"] = {"x-secret": [mark()]}
    rows = [
        make_row(body=marked_body(), response=json.dumps(answer)),
        make_row(id="r2", body=marked_body()[:-7], response=make_response("m2")),
        make_row(id="r3", body=json.dumps(mark())),
        make_row(id="r4", body=mark().encode() + b"\xff"),
        make_row(id="r5", body=marked_body(), timestamp=mark()),
        make_row(id="r6", body=marked_body(), response=mark()),
        make_row(id="r7", body='{"messages": [' + json.dumps(mark()) + "," + "[" * 9999 + "]" * 9999 + "]}"),
    ]
    make_database(folder / "x'; DROP TABLE requests; --.db", rows, schema=LOOSE_SCHEMA)
    (folder / "text.db").write_text(mark())
    make_log(folder / "log.jsonl", [make_pair(json.loads(marked_body()), "m8"), mark(), make_pair()])
    message = {"id": "m1", "model": "claude-x", "content": [{"type": "text", "text": mark()}]}
    make_transcript(folder / "projects" / "p" / "s1.jsonl", [
        make_record(message=message, cwd=mark(), gitBranch=mark(), toolUseResult={"content": mark()}),
        make_record("user", message={"role": "user", "content": mark()}),
        {"type": "summary", "summary": mark()}, mark(), '{"type": "assistant", "' + mark(),
    ])  # fmt: skip


class Everywhere(NamedTuple):
    """All that was written and said."""

    root: Path
    store: Store
    said: str
    sent: list[bytes]


@pytest.fixture
def everywhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Received
) -> Iterator[Everywhere]:
    monkeypatch.delenv("KV_PIPELINE_SALT", raising=False)
    inbox, root = tmp_path / "inbox", tmp_path / "store"
    plant(inbox)

    def call(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["kv-pipeline", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()

    call("run", "--inbox", inbox, "--store", root, "--verbose")
    call("run", "--inbox", inbox, "--store", root, "--json")
    for command in (["list"], ["validate", "--json"], ["monitor"], ["report", "--text"]):
        call(*command, "--store", root)
    call("export", "--store", root, "--out", tmp_path / "out" / "traces")
    call("export", "--store", root, "--out", tmp_path / "out" / "strict", "--profile", "strict", "--anonymize")
    call("report", "--store", root, "--out", tmp_path / "out" / "reports")
    monkeypatch.setenv(WEBHOOK_VARIABLE, server.url)
    monkeypatch.setenv(DSN_VARIABLE, server.dsn)
    with open_instance(root) as instance:
        place = Place(inbox, Store.open(root), instance)
        cursor = alert_tick(place, None).cursor
        pipeline = PipelineResource(inbox=str(inbox), store=str(root))
        job = build_defs(resource_overrides={"pipeline": pipeline}).resolve_job_def("nightly")
        job.execute_in_process(instance=instance, run_config=QUIET, raise_on_error=False)
        alert_tick(place, cursor)
    out, err = capfd.readouterr()
    yield Everywhere(tmp_path, Store.open(root), out + err, list(server.bodies))


def test_no_text_of_the_landing_data_is_anywhere_but_in_segments(everywhere: Everywhere) -> None:
    assert MARK not in everywhere.said
    assert not [body for body in everywhere.sent if MARK.encode() in body]
    assert mentions(everywhere.root / "out", MARK.encode()) == []
    found = mentions(everywhere.store.root, MARK.encode())
    assert {path.relative_to(everywhere.store.root).parts[0] for path in found} == {"segments"}
    # It was there to be found, and the places that were searched are those meant:
    segments = b"".join(text_in(path) for path in found)
    assert segments.count(MARK.encode()) > 100
    assert "body_not_json" in everywhere.said
    assert "asset=raw_requests partition=mallory/x%27%3B%20DROP" in everywhere.said
    assert len(everywhere.sent) > 2
    assert (everywhere.root / "out" / "reports" / "index.html").exists()
    assert (everywhere.store.root / "reports" / "monitor.json").exists()
    assert len(list((everywhere.root / "out" / "traces").glob("*.json"))) > 0
