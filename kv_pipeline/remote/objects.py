"""The objects under a URL: listing, reading, writing whole ones, and writing on condition that nobody else has.

Everything else about the service (credentials, region, endpoint) comes from the environment, as obstore reads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from kv_pipeline.errors import KvPipelineError, StoreError, UsageError
from kv_pipeline.remote.url import ObjectUrl

if TYPE_CHECKING:
    from obstore import ObjectMeta, UpdateVersion

_AT_A_TIME: Final = 16
_RETRIES: Final = 4
_RETRY_S: Final = 30
_STATUS: Final = re.compile(r"status code: (\d{3})")
_REMEDIES: Final = {
    "s3": "Check AWS_ENDPOINT_URL (plain http needs AWS_ALLOW_HTTP=true), AWS_REGION and the AWS_ credentials.",
    "gs": "Check GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS.",
    "az": "Check AZURE_STORAGE_ACCOUNT_NAME and the AZURE_STORAGE_ credentials.",
}
T = TypeVar("T")
R = TypeVar("R")


class Found(NamedTuple):
    """An object in a listing.

    Attributes:
        etag: Changes whenever the object does.
        n_bytes: Its size.
    """

    etag: str
    n_bytes: int


class Version(NamedTuple):
    """What a conditional write says that it replaces.

    Attributes:
        etag: As services know it that go by content or time.
        number: As services know it that count.
    """

    etag: str | None
    number: str | None

    @property
    def as_condition(self) -> UpdateVersion:
        """For obstore."""
        named = {"e_tag": self.etag, "version": self.number}
        return {name: value for name, value in named.items() if value is not None}  # type: ignore[return-value]  # keys of the two that are there


class Objects:
    """The objects under a URL, by their names below it.

    Args:
        url: For messages.
        store: What obstore opened.
    """

    def __init__(self, url: ObjectUrl, store: ObjectStore) -> None:
        self.url, self._store = url, store

    @classmethod
    def open(cls, url: ObjectUrl) -> Objects:
        """Open a URL; nothing is asked of the service yet.

        Raises:
            StoreError: The settings in the environment can't be used.
        """
        retries = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)}
        try:
            return cls(url, from_url(url, retry_config=retries))  # type: ignore[call-overload]  # a URL of any kind
        except (BaseError, ValueError) as error:
            raise _told(url, error) from None

    def list(self) -> dict[str, Found]:
        """All objects.

        Raises:
            UsageError: There is no such bucket.
            StoreError: It can't be listed, or an object's name can't be used.
        """
        with self._faults_told():
            return _by_name(meta for part in obstore.list(self._store) for meta in part)

    def list_tolerantly(self) -> tuple[dict[str, Found], Sequence[str]]:
        """All objects but those of folders where a name can't be used, and these folders.

        Names that are no paths ("..", an empty part, control characters) stop a listing, so after one did the folders
        are listed one by one.

        Raises:
            UsageError: There is no such bucket.
            StoreError: It can't be listed, or a name in the first folder can't be used.
        """
        try:
            with self._faults_told(InvalidPathError):
                return _by_name(meta for part in obstore.list(self._store) for meta in part), ()
        except InvalidPathError:
            return self._list_folders()

    def _list_folders(self) -> tuple[dict[str, Found], Sequence[str]]:
        found: dict[str, Found] = {}
        left_out: list[str] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with self._faults_told(*([InvalidPathError] if folder else [])):
                    listed = obstore.list_with_delimiter(self._store, folder or None)
            except InvalidPathError:
                left_out.append(folder)
                continue
            found |= _by_name(listed["objects"])
            folders += listed["common_prefixes"]
        return found, left_out

    def read(self, name: str) -> tuple[bytes, Version] | None:
        """A small object; None if there is none."""
        try:
            with self._faults_told(FileNotFoundError):
                found = obstore.get(self._store, name)
                return bytes(found.bytes()), Version(found.meta["e_tag"], found.meta["version"])
        except FileNotFoundError:
            return None

    def beginning(self, name: str, n_bytes: int) -> bytes:
        """The first bytes of an object; none of one that is empty or gone."""
        try:
            with self._faults_told(FileNotFoundError):
                return bytes(obstore.get(self._store, name, options={"range": (0, n_bytes)}).bytes())
        except FileNotFoundError:
            return b""

    def download(self, name: str, path: Path) -> str | None:
        """Write an object to a file that only its owner can read; returns its etag, None if it is gone."""
        try:
            with self._faults_told(FileNotFoundError):
                found = obstore.get(self._store, name)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with open(descriptor, "wb") as file:  # noqa: PTH123
                    for chunk in found.stream():
                        file.write(chunk)
                return etag_of(found.meta)
        except FileNotFoundError:
            return None

    def put(self, name: str, path: Path) -> str:
        """Write a file as an object, which appears whole or not at all; returns its etag."""
        with self._faults_told():
            return obstore.put(self._store, name, path)["e_tag"] or ""

    def put_if(self, name: str, content: bytes, expected: Version | None) -> Version | None:
        """Write an object if it is what is expected; returns what it is now.

        Args:
            name: The object.
            content: What it shall hold.
            expected: What is to be replaced; None if nothing.

        Returns:
            None if it was something else, and still is.
        """
        mode = "create" if expected is None else expected.as_condition
        try:
            with self._faults_told(AlreadyExistsError, PreconditionError, FileNotFoundError):
                written = obstore.put(self._store, name, content, mode=mode)  # type: ignore[arg-type]  # one or the other
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            return None
        return Version(written["e_tag"], written["version"])

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        try:
            with self._faults_told(FileNotFoundError):
                obstore.delete(self._store, name)
        except FileNotFoundError:
            pass  # which is what was wanted

    @contextmanager
    def _faults_told(self, *expected: type[Exception]) -> Iterator[None]:
        """Faults in our words; those that are expected as they are."""
        try:
            yield
        except expected:
            raise
        except (BaseError, ValueError, FileNotFoundError, NotImplementedError) as error:
            raise _told(self.url, error) from None  # what the service said may hold what a request was signed with


def each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do the same with many objects, some at a time; results in order.

    Raises:
        Exception: As the first that failed; the others that had begun are finished.
    """
    with ThreadPoolExecutor(_AT_A_TIME, "objects") as pool:
        return list(pool.map(work, items))


def etag_of(meta: ObjectMeta | Mapping[str, object]) -> str:
    """What tells an object from an earlier one of its name; services without etags have times."""
    return str(meta["e_tag"] or meta["last_modified"])


def _by_name(metas: Iterable[ObjectMeta]) -> dict[str, Found]:
    """Without the object by which some tools mark the folder itself, which has no name below it."""
    return {meta["path"]: Found(etag_of(meta), meta["size"]) for meta in metas if meta["path"]}


def unconditional(url: ObjectUrl) -> StoreError:
    """What to tell of a service that can't keep two writers apart."""
    needs = "a store needs conditional writes (If-None-Match, If-Match), which the service does not do"
    return StoreError(f"{url}: {needs}. Use another one, or a folder as --store.")


def _told(url: ObjectUrl, error: Exception) -> KvPipelineError:
    """What to tell of a fault; never in the words of the service."""
    text = str(error)
    status = _STATUS.search(text)
    number = status.group(1) if status else None
    if "NoSuchBucket" in text or "ContainerNotFound" in text or isinstance(error, FileNotFoundError):
        return UsageError(f"There is no bucket as in {url}. Check the URL; buckets are not made.")
    if isinstance(error, InvalidPathError):
        return StoreError(f"{url}: the name of an object there can't be used as a path. Rename or delete it.")
    if isinstance(error, NotImplementedError) or number == "501":
        return unconditional(url)
    remedy = _REMEDIES[url.partition(":")[0]]
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or number in {"401", "403"}:
        return StoreError(f"{url}: access was refused. {remedy}")
    return StoreError(f"{url} can't be reached{f' (HTTP status {number})' if number else ''}. {remedy}")
