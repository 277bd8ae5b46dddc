"""The landing folder: which recordings and transcripts there are, of whom, and whether they changed.

    <inbox>/<user>/**/*.db                 a proxy's database
    <inbox>/<user>/**/*.jsonl              a claude-trace log, if it begins like one, outside `projects/`
    <inbox>/<user>/**/*.har                a HAR file, outside `projects/`
    <inbox>/<user>/projects/**/*.jsonl     transcripts

Inputs are only looked at: nothing here reads more of a file than the beginning that tells what it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kv_pipeline.errors import Skip, UsageError
from kv_pipeline.links import REMEDY, Bounds
from kv_pipeline.names import printable, safe_name
from kv_pipeline.schemas.requests import CLAUDE_CODE_PROXY, CLAUDE_TRACE, HAR
from kv_pipeline.sources.claude_trace.detection import is_log
from kv_pipeline.sources.har.detection import SUFFIX as HAR_SUFFIX
from kv_pipeline.sources.har.detection import is_har

PROJECTS: Final = "projects"
DIRECT_USER: Final = "local"
_SQLITE_COMPANIONS: Final = ("", "-wal")


@dataclass(frozen=True, slots=True)
class DatabaseFile:
    """A recording in the landing folder: a proxy's database, or a log."""

    database_id: str
    user_id: str
    path: Path
    fingerprint: str
    recorded_by: str = CLAUDE_CODE_PROXY


@dataclass(frozen=True, slots=True)
class TranscriptFile:
    """A transcript in the landing folder; `source` is its id in reports."""

    source: str
    path: Path


@dataclass(slots=True)
class UserTranscripts:
    """All transcripts of a user."""

    files: list[TranscriptFile] = field(default_factory=list)
    fingerprint: str = ""


@dataclass(slots=True)
class Landing:
    """What is in the landing folder, by id."""

    databases: dict[str, DatabaseFile] = field(default_factory=dict)
    transcripts: dict[str, UserTranscripts] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)

    @property
    def users(self) -> list[str]:
        """Users that have anything here."""
        return sorted({database.user_id for database in self.databases.values()} | set(self.transcripts))


def discover(inbox: Path) -> Landing:
    """Look through an inbox of one folder a user; a folder that is one user's own is taken as that user's.

    Raises:
        UsageError: There is no such folder.
    """
    if not inbox.is_dir():
        raise UsageError(f"{inbox} is no folder. Name the folder that holds one folder per user with --inbox.")
    landing = Landing()
    try:
        entries = sorted(inbox.iterdir())
    except OSError as error:
        raise UsageError(f"{inbox} can't be read: {error.strerror}. Check its permissions.") from error
    if (inbox / PROJECTS).is_dir():
        _add_user(landing, inbox, inbox, safe_name(inbox.resolve().name))
        return landing
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            if not _is_astray(landing, Bounds(None, inbox), entry, entry.name):
                _add_user(landing, entry, inbox, safe_name(entry.name))
        elif entry.suffix in (".db", HAR_SUFFIX) or (entry.suffix == ".jsonl" and _is_log(landing, entry)):
            found, remedy = "the recording is in no user's folder", "Move it into a folder named after its user."
            landing.skips.append(Skip(printable(entry.name), None, "no_user_folder", found, remedy))
    return landing


def direct(paths: Iterable[Path]) -> Landing:
    """A landing made of given files: databases, logs, and folders of transcripts and logs.

    Raises:
        UsageError: A path does not exist.
    """
    landing = Landing()
    transcripts = []
    for path in paths:
        if path.is_dir():
            for file in _files(landing, path, ".jsonl"):
                if _is_log(landing, file):
                    _add_database(landing, DIRECT_USER, file, _log_name(file.relative_to(path)), CLAUDE_TRACE)
                else:
                    transcripts.append((path.name, file))
            for file in _files(landing, path, HAR_SUFFIX):
                _add_database(landing, DIRECT_USER, file, _log_name(file.relative_to(path)), HAR)
        elif path.suffix == ".jsonl" and path.exists():
            if _is_log(landing, path):
                _add_database(landing, DIRECT_USER, path, safe_name(path.name), CLAUDE_TRACE)
            else:
                transcripts.append((path.parent.name, path))
        elif path.exists():
            _add_file(landing, path)
        else:
            raise UsageError(
                f"{path} does not exist. Give databases (*.db), logs (*.jsonl, *.har) and folders of transcripts."
            )
    _add_transcripts(landing, DIRECT_USER, transcripts)
    return landing


def _add_user(landing: Landing, folder: Path, inbox: Path, user_id: str) -> None:
    bounds = Bounds(folder, inbox)
    for path in _files(landing, folder, ".db", bounds=bounds):
        relative = path.relative_to(folder).with_suffix("")
        _add_database(landing, user_id, path, "/".join(map(safe_name, relative.parts)))
    for path in _files(landing, folder, ".jsonl", without=folder / PROJECTS, bounds=bounds):
        if _is_log(landing, path):
            _add_database(landing, user_id, path, _log_name(path.relative_to(folder)), CLAUDE_TRACE)
    for path in _files(landing, folder, HAR_SUFFIX, without=folder / PROJECTS, bounds=bounds):
        _add_database(landing, user_id, path, _log_name(path.relative_to(folder)), HAR)
    files = _files(landing, folder / PROJECTS, ".jsonl", bounds=bounds)
    _add_transcripts(landing, user_id, [(str(file.relative_to(folder).parent), file) for file in files])


def _add_file(landing: Landing, path: Path) -> None:
    """A given file that is no JSONL: a HAR file if it is called or begins like one, else a database."""
    try:
        recorded_by = HAR if is_har(path) else CLAUDE_CODE_PROXY
    except OSError:
        recorded_by = CLAUDE_CODE_PROXY  # whose reader says what is wrong with it
    name = safe_name(path.name if recorded_by == HAR else path.stem)
    _add_database(landing, DIRECT_USER, path, name, recorded_by)


def _log_name(relative: Path) -> str:
    """A log keeps its suffix in its name, so that it can lie beside a database of the same name."""
    return "/".join(map(safe_name, relative.parts))


def _is_log(landing: Landing, path: Path) -> bool:
    try:
        return is_log(path)
    except OSError as error:
        source, found = printable(path.name), f"the file can't be read: {error.strerror}"
        landing.skips.append(Skip(source, None, "unreadable_file", found, "Check its permissions."))
        return False


def _add_database(landing: Landing, user_id: str, path: Path, name: str, recorded_by: str = CLAUDE_CODE_PROXY) -> None:
    database_id = f"{user_id}/{name}"
    if database_id in landing.databases:
        found, remedy = "another recording has the same name", "Rename one of the two."
        landing.skips.append(Skip(database_id, None, "same_name", found, remedy))
        return
    target = path.resolve()  # SQLite keeps the companions of a link beside what it links to
    companions = (target.with_name(target.name + suffix) for suffix in _SQLITE_COMPANIONS)
    landing.databases[database_id] = DatabaseFile(database_id, user_id, path, _fingerprint(companions), recorded_by)


def _add_transcripts(landing: Landing, user_id: str, found: list[tuple[str, Path]]) -> None:
    if found:
        landing.transcripts[user_id] = UserTranscripts(
            [TranscriptFile(printable(f"{user_id}/{place}/{path.name}"), path) for place, path in found],
            _fingerprint(companion for _, path in found for companion in (path, path.with_suffix(".meta.json"))),
        )


def _is_astray(landing: Landing, bounds: Bounds, path: Path, name: str) -> bool:
    found = bounds.astray(path)
    if found is not None:
        landing.skips.append(Skip(printable(name), None, "foreign_link", found, REMEDY))
    return found is not None


def _files(
    landing: Landing, folder: Path, suffix: str, without: Path | None = None, bounds: Bounds | None = None
) -> list[Path]:
    """Files below a folder, less those of one below it, in sorted order; a folder that can't be read is noted.

    Links to folders are not followed, except `folder` itself, so nothing is read twice and no circle can form. Links
    that lead out of bounds are noted.
    """

    def note(error: OSError) -> None:
        if folder.exists():
            source, found = printable(str(error.filename)), f"the folder can't be read: {error.strerror}"
            landing.skips.append(Skip(source, None, "unreadable_folder", found, "Check its permissions."))

    def is_good(path: Path) -> bool:
        return bounds is None or not _is_astray(landing, bounds, path, str(path.relative_to(bounds.inbox)))

    found = []
    if folder.is_symlink() and not is_good(folder):
        return []
    for directory, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if Path(directory, name) != without]
        paths = [path for path in map(Path(directory).joinpath, names) if path.suffix == suffix]
        found += [path for path in paths if is_good(path)]
    return sorted(found)


def _fingerprint(paths: Iterable[Path]) -> str:
    """Changes when a file does: names, sizes and times of change. Reading them all would take as long as the work."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        digest.update(repr((path.name, status.st_size, status.st_mtime_ns, status.st_ino)).encode())
    return digest.hexdigest()
