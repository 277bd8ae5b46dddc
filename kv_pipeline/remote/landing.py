"""A landing folder in a bucket: what is there, from one listing; fetched when it is read. Nothing is written there.

Rules are those of folders (`kv_pipeline/landing.py`). Fingerprints are made of names, sizes and etags, so they are the
same on every machine. Names are as hostile as their makers: they become ids by the rules for file names, and paths here
only where they are one plain file name.

    <cache>/transcripts/<user>/<digest>/<file>   transcripts, until they change or their user is gone
    <cache>/logs.json                            which JSONL files were found to be logs, or not
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from kv_pipeline.atomic import write_bytes
from kv_pipeline.errors import Skip, UsageError
from kv_pipeline.landing import (
    PROJECTS,
    SQLITE_COMPANIONS,
    DatabaseFile,
    Landing,
    TranscriptFile,
    UserTranscripts,
    add_recording,
    database_name,
    log_name,
    no_user_folder,
    transcript_source,
)
from kv_pipeline.names import TEMPORARY, printable, safe_name
from kv_pipeline.processes import this_process
from kv_pipeline.remote.objects import Found, Objects, each
from kv_pipeline.remote.url import ObjectUrl, cache_of
from kv_pipeline.schemas.requests import CLAUDE_CODE_PROXY, CLAUDE_TRACE, HAR
from kv_pipeline.sources.claude_trace.detection import BEGINNING_BYTES, begins_like_log
from kv_pipeline.sources.har.detection import SUFFIX as HAR_SUFFIX

_MAX_FILE_NAME_BYTES: Final = 255
_META: Final = ".meta.json"
_RECORDING: Final = "recording"
"""What a recording is called while it is read: its own name is its maker's."""

Listing = Mapping[PurePosixPath, Found]


@dataclass(frozen=True, slots=True)
class RemoteRecording:
    """A recording in a bucket, and its write-ahead log.

    Attributes:
        objects: Where it is.
        names: Suffix to name of those of its objects that there are.
        n_bytes: Size of the recording.
    """

    objects: Objects
    names: Mapping[str, str]
    n_bytes: int

    def to(self, folder: Path) -> Path:
        """Fetch it."""
        for suffix, name in self.names.items():
            self.objects.download(name, folder / f"{_RECORDING}{suffix}")
        return folder / _RECORDING


def discover_objects(url: ObjectUrl) -> Landing:
    """As `kv_pipeline.landing.discover`, of objects.

    Raises:
        UsageError: There is no such bucket, or nothing under the URL.
        StoreError: It can't be reached.
    """
    return _Bucket(Objects.open(url), cache_of(url)).landing()


class _Bucket:
    """A landing folder in a bucket.

    Args:
        objects: What is in it.
        cache: Folder for what is kept of it.
    """

    def __init__(self, objects: Objects, cache: Path) -> None:
        self._objects, self._cache = objects, cache

    def landing(self) -> Landing:
        """What is there."""
        found, left_out = self._objects.list_tolerantly()
        if not found and not left_out:
            raise UsageError(f"There is nothing under {self._objects.url}. Name the folder of users' folders.")
        landing = Landing(skips=[_unusable(folder) for folder in left_out])
        listing = {PurePosixPath(name): found[name] for name in sorted(found, key=lambda name: name.split("/"))}
        is_one_user = any(path.parts[0] == PROJECTS and len(path.parts) > 1 for path in listing)
        logs = self._logs(listing, is_one_user=is_one_user)
        if is_one_user:
            name = self._objects.url.rpartition("/")[2]
            self._add_user(landing, safe_name(name), PurePosixPath(), listing, logs)
        else:
            for name, entry in groupby(listing, key=lambda path: path.parts[0]):  # names are sorted part by part
                if not name.startswith("."):
                    self._add_entry(landing, name, {path: listing[path] for path in entry}, logs)
        self._forget_users(landing)
        return landing

    def _add_entry(self, landing: Landing, name: str, entry: Listing, logs: set[PurePosixPath]) -> None:
        """What lies under a name at the top: a user's folder, or a file that should be in one, or both."""
        path = PurePosixPath(name)
        own = {below: found for below, found in entry.items() if below != path}
        if own:
            self._add_user(landing, safe_name(name), path, own, logs)
        if path in entry and (path.suffix in {".db", HAR_SUFFIX} or path in logs):
            landing.skips.append(no_user_folder(name))

    def _add_user(
        self, landing: Landing, user_id: str, folder: PurePosixPath, listing: Listing, logs: set[PurePosixPath]
    ) -> None:
        relative = {path: path.relative_to(folder) for path in listing}
        recordings = [
            *((path, CLAUDE_CODE_PROXY, database_name(relative[path])) for path in listing if path.suffix == ".db"),
            *((path, CLAUDE_TRACE, log_name(relative[path])) for path in listing if path in logs),
            *(
                (path, HAR, log_name(relative[path]))
                for path in listing
                if path.suffix == HAR_SUFFIX and relative[path].parts[0] != PROJECTS
            ),
        ]
        for path, recorded_by, name in recordings:
            add_recording(landing, self._recording(listing, path, f"{user_id}/{name}", recorded_by))
        transcripts = [path for path in listing if path.suffix == ".jsonl" and relative[path].parts[0] == PROJECTS]
        self._add_transcripts(landing, user_id, {path: str(relative[path]) for path in transcripts}, listing)

    def _recording(self, listing: Listing, path: PurePosixPath, database_id: str, recorded_by: str) -> DatabaseFile:
        companions = {suffix: path.with_name(path.name + suffix) for suffix in SQLITE_COMPANIONS}
        there = {suffix: companion for suffix, companion in companions.items() if companion in listing}
        names = {suffix: str(companion) for suffix, companion in there.items()}
        download = RemoteRecording(self._objects, names, listing[path].n_bytes)
        fingerprint = _fingerprint(listing, there.values())
        user_id = database_id.partition("/")[0]
        return DatabaseFile(database_id, user_id, Path(path.name), fingerprint, recorded_by, download)

    def _add_transcripts(
        self, landing: Landing, user_id: str, relative: Mapping[PurePosixPath, str], listing: Listing
    ) -> None:
        files: list[TranscriptFile] = []
        wanted: dict[str, Path] = {}
        for path, name in relative.items():
            if len(os.fsencode(path.name)) > _MAX_FILE_NAME_BYTES - len(_META):
                landing.skips.append(_too_long(f"{user_id}/{name}"))
                continue
            meta = path.with_name(path.name.removesuffix(".jsonl") + _META)
            together = [each for each in (path, meta) if each in listing]
            folder = self._transcripts(user_id) / _fingerprint(listing, together)
            wanted |= {str(each): folder / each.name for each in together}
            files.append(TranscriptFile(transcript_source(user_id, name), folder / path.name))
        if files:
            fingerprint = _fingerprint(listing, map(PurePosixPath, wanted))
            fetch = partial(self._fetch_transcripts, user_id, wanted)
            landing.transcripts[user_id] = UserTranscripts(files, fingerprint, fetch)

    def _transcripts(self, user_id: str) -> Path:
        return self._cache / "transcripts" / user_id

    def _fetch_transcripts(self, user_id: str, wanted: Mapping[str, Path]) -> None:
        """Fetch those that are not here, and remove what they took the place of."""
        kept = {path.parent.name for path in wanted.values()}
        mine = self._transcripts(user_id)
        if mine.is_dir():
            for folder in mine.iterdir():
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)
        each(self._fetch_file, [(name, path) for name, path in wanted.items() if not path.exists()])

    def _fetch_file(self, wanted: tuple[str, Path]) -> None:
        name, path = wanted
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY}{this_process()}-{_fingerprint({}, [PurePosixPath(name)])}"
        try:
            if self._objects.download(name, temporary) is not None:
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _forget_users(self, landing: Landing) -> None:
        """Transcripts of users who have none any more don't stay here either."""
        folder = self._cache / "transcripts"
        if folder.is_dir():
            for mine in folder.iterdir():
                if mine.name not in landing.transcripts:
                    shutil.rmtree(mine, ignore_errors=True)

    def _logs(self, listing: Listing, *, is_one_user: bool) -> set[PurePosixPath]:
        """JSONL files outside `projects/` that begin like logs; each version of one is looked at once."""
        known = self._known_logs()
        keys = {path: _fingerprint(listing, [path]) for path in _possible_logs(listing, is_one_user=is_one_user)}
        unknown = [path for path, key in keys.items() if key not in known]
        beginnings = each(lambda path: self._objects.beginning(str(path), BEGINNING_BYTES), unknown)
        found = {keys[path]: begins_like_log(beginning) for path, beginning in zip(unknown, beginnings, strict=True)}
        current = {key: (known | found)[key] for key in sorted(keys.values())}
        if current != known:
            write_bytes(self._cache / "logs.json", msgspec.json.encode(current))
        return {path for path, key in keys.items() if current[key]}

    def _known_logs(self) -> dict[str, bool]:
        try:
            return msgspec.json.decode((self._cache / "logs.json").read_bytes(), type=dict[str, bool])
        except (FileNotFoundError, msgspec.MsgspecError):
            return {}  # then they are looked at again


def _possible_logs(listing: Listing, *, is_one_user: bool) -> Iterator[PurePosixPath]:
    for path, found in listing.items():
        below = path.parts if is_one_user else path.parts[1:]
        is_hidden = path.parts[0].startswith(".") and not is_one_user
        if path.suffix == ".jsonl" and found.n_bytes and not is_hidden and below[:1] != (PROJECTS,):
            yield path


def _fingerprint(listing: Listing, paths: Iterable[PurePosixPath]) -> str:
    """Changes when an object does: names, sizes and etags."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(repr((str(path), *listing.get(path, ()))).encode())
    return digest.hexdigest()


def _unusable(folder: str) -> Skip:
    found = 'an object in it has a name that is no path: an empty part, "..", or control characters'
    return Skip(printable(folder), None, "unreadable_folder", found, "Rename or delete the object.")


def _too_long(source: str) -> Skip:
    return Skip(printable(source), None, "unreadable_file", "its name is too long for a file", "Rename the object.")
