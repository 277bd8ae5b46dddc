"""Reading generated landing folders back, independently of the package under test."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any


def dump(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT rowid, * FROM requests ORDER BY rowid").fetchall()


def rows(path: Path) -> list[dict[str, Any]]:
    names = ("id", "timestamp", "headers", "body", "response", "model", "created_at")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        found = connection.execute(f"SELECT {', '.join(names)} FROM requests ORDER BY rowid").fetchall()
    return [dict(zip(names, row, strict=True)) for row in found]


def databases(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.db"))


def all_rows(root: Path) -> Iterator[dict[str, Any]]:
    for path in databases(root):
        yield from rows(path)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def transcripts(root: Path) -> list[Path]:
    return sorted(root.glob("*/projects/**/*.jsonl"))


def events(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in response["streamingChunks"]]


def message_id(response: dict[str, Any]) -> str | None:
    return response["body"]["id"] if response["statusCode"] == 200 else None


def usage(response: dict[str, Any]) -> dict[str, Any]:
    """Billed usage as the API sent it: from the stream where there is one."""
    if response["isStreaming"]:
        return events(response)[0]["message"]["usage"]
    return response["body"]["usage"]


def breakpoints(body: str) -> int:
    return body.count('"cache_control":{')
