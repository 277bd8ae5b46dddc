"""The landing folder: which recordings and transcripts there are, of whom, and whether they changed.

    <inbox>/<user>/**/*.db                 a proxy's database
    <inbox>/<user>/**/*.jsonl              a claude-trace log, if it begins like one, outside `projects/`
    <inbox>/<user>/**/*.har                a HAR file, outside `projects/`
    <inbox>/<user>/projects/**/*.jsonl     transcripts

Inputs are only looked at: nothing here reads more of a file than the beginning that tells what it is. What lies in a
bucket is fetched when it is read (`kv_pipeline/remote/landing.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Final, Protocol

from kv_pipeline.errors import Skip, UsageError, needs_extra
from kv_pipeline.links import REMEDY, Bounds
from kv_pipeline.names import TEMPORARY, printable, safe_name
from kv_pipeline.processes import this_process
from kv_pipeline.remote.url import Location
from kv_pipeline.schemas.requests import CLAUDE_CODE_PROXY, CLAUDE_TRACE, HAR
from kv_pipeline.sources.claude_trace.detection import is_log
from kv_pipeline.sources.har.detection import SUFFIX as HAR_SUFFIX
from kv_pipeline.sources.har.detection import is_har

PROJECTS: Final = "projects"
DIRECT_USER: Final = "local"
SQLITE_COMPANIONS: Final = ("", "-wal")


class Download(Protocol):
    """A recording in a bucket."""

    @property
    def n_bytes(self) -> int:
        """Its size."""

    def to(self, folder: Path) -> Path:
        """Fetch it and its companions into a folder; returns its path, where nothing is if it is gone."""


@dataclass(frozen=True, slots=True)
class DatabaseFile:
    """A recording in the landing folder: a proxy's database, or a log.

    Attributes:
        database_id: Its partition.
        user_id: Whose it is.
        path: Where it is; its name only, if it is in a bucket.
        fingerprint: Changes when it does.
        recorded_by: Its format.
        download: Fetches it, if it is in a bucket.
    """

    database_id: str
    user_id: str
    path: Path
    fingerprint: str
    recorded_by: str = CLAUDE_CODE_PROXY
    download: Download | None = field(default=None, repr=False)

    @property
    def is_here(self) -> bool:
        """Whether the file is one of this machine's, which can be looked into."""
        return self.download is None

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size if self.download is None else self.download.n_bytes

    @contextlib.contextmanager
    def on_disk(self, scratch: Path) -> Iterator[Path]:
        """The file to read, with its companions beside it; a copy of what lies in a bucket goes at the end.

        Args:
            scratch: Folder for the copy.
        """
        if self.download is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{this_process()}-", dir=scratch) as folder:
            yield self.download.to(Path(folder))


@dataclass(frozen=True, slots=True)
class TranscriptFile:
    """A transcript in the landing folder; `source` is its id in reports."""

    source: str
    path: Path


@dataclass(slots=True)
class UserTranscripts:
    """All transcripts of a user.

    Attributes:
        files: The transcripts.
        fingerprint: Changes when one of them does.
        fetch: To be called before they are read: puts those that lie in a bucket where `files` says.
    """

    files: list[TranscriptFile] = field(default_factory=list)
    fingerprint: str = ""
    fetch: Callable[[], None] = field(default=lambda: None, repr=False)


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


def discover(inbox: Location) -> Landing:
    """Look through an inbox of one folder a user; a folder that is one user's own is taken as that user's.

    Raises:
        UsageError: There is no such folder, or nothing under its URL.
        StoreError: Its URL can't be reached.
    """
    if not isinstance(inbox, Path):
        needs_extra("obstore", "objects", f"A store or landing folder such as {inbox}")
        from kv_pipeline.remote.landing import discover_objects

        return discover_objects(inbox)
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
            landing.skips.append(no_user_folder(entry.name))
    return landing


def no_user_folder(name: str) -> Skip:
    """What to tell of a recording that lies beside the users' folders."""
    found, remedy = "the recording is in no user's folder", "Move it into a folder named after its user."
    return Skip(printable(name), None, "no_user_folder", found, remedy)


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
                    _add_database(landing, DIRECT_USER, file, log_name(file.relative_to(path)), CLAUDE_TRACE)
                else:
                    transcripts.append((path.name, file))
            for file in _files(landing, path, HAR_SUFFIX):
                _add_database(landing, DIRECT_USER, file, log_name(file.relative_to(path)), HAR)
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
        _add_database(landing, user_id, path, database_name(path.relative_to(folder)))
    for path in _files(landing, folder, ".jsonl", without=folder / PROJECTS, bounds=bounds):
        if _is_log(landing, path):
            _add_database(landing, user_id, path, log_name(path.relative_to(folder)), CLAUDE_TRACE)
    for path in _files(landing, folder, HAR_SUFFIX, without=folder / PROJECTS, bounds=bounds):
        _add_database(landing, user_id, path, log_name(path.relative_to(folder)), HAR)
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


def database_name(relative: PurePath) -> str:
    """A database's name among those of its user."""
    return "/".join(map(safe_name, relative.with_suffix("").parts))


def log_name(relative: PurePath) -> str:
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
    target = path.resolve()  # SQLite keeps the companions of a link beside what it links to
    companions = (target.with_name(target.name + suffix) for suffix in SQLITE_COMPANIONS)
    add_recording(landing, DatabaseFile(f"{user_id}/{name}", user_id, path, _fingerprint(companions), recorded_by))


def add_recording(landing: Landing, file: DatabaseFile) -> None:
    """Add a recording, unless there is one of its name."""
    if file.database_id in landing.databases:
        found, remedy = "another recording has the same name", "Rename one of the two."
        landing.skips.append(Skip(file.database_id, None, "same_name", found, remedy))
        return
    landing.databases[file.database_id] = file


def _add_transcripts(landing: Landing, user_id: str, found: list[tuple[str, Path]]) -> None:
    if found:
        landing.transcripts[user_id] = UserTranscripts(
            [TranscriptFile(transcript_source(user_id, f"{place}/{path.name}"), path) for place, path in found],
            _fingerprint(companion for _, path in found for companion in (path, path.with_suffix(".meta.json"))),
        )


def transcript_source(user_id: str, relative: str) -> str:
    """A transcript's id in reports."""
    return printable(f"{user_id}/{relative}")


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
