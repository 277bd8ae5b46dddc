"""What arrives in the landing folder, when, and how: whole, in pieces, or with more to come."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from kv_pipeline.demo import DemoSize, write_landing

N_PIECES: Final = 4
WAYS: Final = {"whole": 8, "renamed late": 6, "in pieces": 3, "appended to": 3}
"""How recordings come, and how often."""


class Step(NamedTuple):
    """One change of the landing folder.

    Attributes:
        at_s: When, in seconds since the beginning.
        change: What is done then.
    """

    at_s: float
    change: Callable[[], object]


class Delivery(NamedTuple):
    """A recording, or a transcript, and where it goes.

    Attributes:
        source: The finished file.
        target: Its place in the landing folder.
    """

    source: Path
    target: Path


def generate(stock: Path, inbox: Path, users: int, databases: int, seed: int) -> tuple[list[Delivery], list[Delivery]]:
    """Generate batches of all users until there are databases enough.

    Args:
        stock: Where they are generated.
        inbox: Where they are to arrive.
        users: How many users.
        databases: How many databases in all.
        seed: Of everything invented.

    Returns:
        Recordings, and transcripts. Of each user the first database comes with the rare cases of the demo.
    """
    recordings, transcripts = list[Delivery](), list[Delivery]()
    number = 0
    while len(recordings) < databases:
        batch = stock / str(number)
        size = DemoSize(users=users, conversations=2, turns=4, has_plants=not number)
        write_landing(batch, size=size, seed=1_000 * seed + number)
        for path in sorted(batch.rglob("*.db")):
            recordings.append(_delivery(batch, inbox, path, f"{path.stem}-{number}.db"))
        transcripts += [
            _delivery(batch, inbox, path, path.name) for path in sorted(batch.glob("*/projects/**/*.jsonl"))
        ]
        number += 1
    kept = recordings[:databases]
    there = {(each.source.relative_to(stock).parts[:2]) for each in kept}
    return kept, [each for each in transcripts if each.source.relative_to(stock).parts[:2] in there]


def _delivery(batch: Path, inbox: Path, path: Path, name: str) -> Delivery:
    return Delivery(path, inbox / path.relative_to(batch).with_name(name))


def schedule(recordings: list[Delivery], transcripts: list[Delivery], duration_s: float, rng: Random) -> list[Step]:
    """When everything happens, in order; the last change is due at the end of the duration."""
    steps = list[Step]()
    for delivery in recordings:
        (way,) = rng.choices(list(WAYS), list(WAYS.values()))
        steps += _spread(_changes(delivery, way), duration_s, rng)
    for delivery in transcripts:
        steps += _spread(_lines(delivery, rng.choice([1, 1, 3])), duration_s, rng)
    return sorted(steps, key=lambda step: step.at_s)


def _spread(changes: list[Callable[[], object]], duration_s: float, rng: Random) -> Iterator[Step]:
    """Changes at random times, one after the other."""
    return map(Step, sorted(rng.uniform(0, duration_s) for _ in changes), changes)


def _changes(delivery: Delivery, way: str) -> list[Callable[[], object]]:
    target = delivery.target
    if way == "whole":
        return [partial(_copy, delivery)]
    if way == "appended to":
        return [partial(_first_half, delivery), partial(_second_half, delivery)]
    place = target.with_name(f"{target.name}.part") if way == "renamed late" else target
    pieces = [partial(_piece, delivery.source, place, number) for number in range(N_PIECES)]
    return [*pieces, partial(place.rename, target)]


def _copy(delivery: Delivery) -> None:
    delivery.target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(delivery.source, delivery.target)


def _piece(source: Path, place: Path, number: int) -> None:
    content = source.read_bytes()
    length = -(-len(content) // N_PIECES)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("ab") as file:
        file.write(content[number * length : (number + 1) * length])


def _first_half(delivery: Delivery) -> None:
    """A database as the proxy left it half-way; it appears at once."""
    place = delivery.target.with_name(f"{delivery.target.name}.part")
    _copy(delivery._replace(target=place))
    with closing(sqlite3.connect(place)) as database, database:
        database.execute("DELETE FROM requests WHERE rowid > (SELECT max(rowid) / 2 FROM requests)")
    place.rename(delivery.target)


def _second_half(delivery: Delivery) -> None:
    """The proxy goes on, in the same file."""
    with closing(sqlite3.connect(delivery.target, timeout=60)) as database:
        database.execute("ATTACH ? AS whole", (str(delivery.source),))
        with database:
            database.execute("INSERT OR IGNORE INTO requests SELECT * FROM whole.requests ORDER BY rowid")


def _lines(delivery: Delivery, n_parts: int) -> list[Callable[[], object]]:
    """A transcript, in so many parts of whole lines."""
    lines = delivery.source.read_bytes().splitlines(keepends=True)
    length = max(1, -(-len(lines) // n_parts))
    parts = [b"".join(lines[start : start + length]) for start in range(0, len(lines), length)]
    return [partial(_append, delivery.target, part) for part in parts]


def _append(target: Path, part: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        file.write(part)
