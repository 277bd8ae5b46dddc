"""A store in a bucket, as a folder that is kept in step with it.

    objects.sqlite   what is known of the bucket: name, etag, and the file's stamp when both were the same
    objects.lock     held while that is brought up to date

The bucket wins. What was changed here and not published is dropped when the bucket is next listed: state is published
after what it is about, so such work is done again. Tables come when they are first read.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kv_pipeline.atomic import locked
from kv_pipeline.locks import WRITER_LOCK, is_held, tried
from kv_pipeline.names import TEMPORARY
from kv_pipeline.processes import this_machine, this_process
from kv_pipeline.remote.folder import Folder
from kv_pipeline.remote.index import Index, Row, Rows
from kv_pipeline.remote.lease import Lease, Times
from kv_pipeline.remote.names import SETTINGS, is_result, is_shared, is_state, is_wanted_at_once
from kv_pipeline.remote.objects import Found, Objects, each
from kv_pipeline.remote.url import ObjectUrl, cache_of

PUBLISH_INTERVAL_S: Final = 20.0
_INDEX, _LOCK = "objects.sqlite", "objects.lock"
_MACHINE_FOLDERS: Final = frozenset({"dagster", "locks"})
_BATCH: Final = 256
"""Files that are fetched before they are put into place."""

_opened: dict[Path, WorkingCopy] = {}
_opening = threading.Lock()


def working_copy(url: ObjectUrl) -> WorkingCopy:
    """The working copy of a store; one object in a process, as it may hold the lease."""
    root = cache_of(url)
    with _opening:
        if root not in _opened:
            _opened[root] = WorkingCopy(root, Objects.open(url), Times.from_environment())
        return _opened[root]


class WorkingCopy(Folder):
    """A folder in step with a store in a bucket.

    Args:
        root: The folder, of this user alone: it holds content and perhaps the salt.
        objects: What the bucket has of the store.
        times: Rhythm of the writer's lease.
    """

    is_copy = True

    def __init__(self, root: Path, objects: Objects, times: Times) -> None:
        super().__init__(root)
        self._objects, self._times = objects, times
        self._index = Index(root / _INDEX)
        self._lease: Lease | None = None
        self._published_s = 0.0

    @property
    def location(self) -> ObjectUrl:
        """The store's URL."""
        return self._objects.url

    def __str__(self) -> str:
        return f"{self.location} (working copy {self.root})"

    def refresh(self) -> None:
        """List the bucket, unless a process of this machine is writing: then the folder is ahead of it."""
        if is_held(self.root / WRITER_LOCK):
            return
        with locked(self.root / _LOCK), tried(self.root / WRITER_LOCK) as is_alone:
            if is_alone:
                self._bring_into_step()
            elif self._index.is_empty():  # that process has not come to it yet
                self._get_to_know(self._listed())
        self.fetch(filter(is_wanted_at_once, self._index.unfetched()))

    @contextmanager
    def writing(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lease; begin with what the bucket has, and publish at the end, also after an error."""
        if self._lease is not None:
            yield
            return
        lease = Lease(self._objects, f"{self._index.copy_id}@{this_machine()}", self._times)
        with lease.held(on_wait):
            with locked(self.root / _LOCK):
                self._bring_into_step()
            self._lease, self._published_s = lease, time.monotonic()
            try:
                self.fetch(filter(is_wanted_at_once, self._index.unfetched()))
                try:
                    yield
                finally:
                    self.publish()
            finally:
                self._lease = None

    def publish(self) -> None:
        """Write to the bucket what was changed here: results, then state, then settings.

        Raises:
            StoreError: The lease was lost, or the bucket can't be written.
        """
        lease = self._lease
        if lease is None:
            return
        changed, gone = self._changes()
        self._published_s = time.monotonic()
        if not changed and not gone:
            return
        lease.renew()
        self._put(lease, filter(is_result, changed))
        self._delete(lease, filter(is_result, gone))
        # One file of state may say what another is about, so they appear in the order in which they were written.
        for name in sorted(filter(is_state, changed), key=self._written_at):
            self._put(lease, [name])
        self._delete(lease, filter(is_state, gone))
        for name in SETTINGS:
            self._put(lease, {name} & {*changed})
        for name in SETTINGS[::-1]:
            self._delete(lease, {name} & {*gone})

    def publish_if_due(self) -> None:
        """Publish, so that a run that is killed loses little."""
        if self._lease is not None and time.monotonic() - self._published_s >= PUBLISH_INTERVAL_S:
            self.publish()

    def fetch(self, names: Iterable[str]) -> None:
        """Fetch objects that are not here yet; of one that was replaced since it was listed, the new one."""
        wanted = self._index.unfetched_of(names)
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            fetched = each(self._download, part)
            with self._index.changing() as rows:
                for name, (temporary, etag) in zip(part, fetched, strict=True):
                    self._put_into_place(rows, name, temporary, etag)

    def fetch_all(self) -> None:
        """Fetch every object."""
        self.fetch(self._index.unfetched())

    def lacks(self, name: str) -> bool:
        """Whether the object was not fetched."""
        return bool(self._index.unfetched_of([name]))

    def unfetched(self, folder: str) -> list[str]:
        """Names of objects that were not fetched; they are part of the store like files that are here."""
        return self._index.unfetched(folder)

    def drop(self, name: str) -> None:
        """From now on the folder counts, where the file is about to be missing."""
        with self._index.changing() as rows:
            row = rows.get(name)
            if row is not None:
                rows.set(name, Row(row.etag, ""))

    def restore(self, path: Path) -> bool:
        """Fetch a file again, unless it was changed here."""
        name = path.relative_to(self.root).as_posix()
        with self._index.changing() as rows:
            row = rows.get(name)
            if row is None or row.stamp != _stamp(path):
                return False
            path.unlink()
            rows.set(name, Row(row.etag, None))
        self.fetch([name])
        return path.exists()

    def _listed(self) -> dict[str, Found]:
        return {name: found for name, found in self._objects.list().items() if is_shared(name)}

    def _get_to_know(self, listed: dict[str, Found]) -> None:
        with self._index.changing() as rows:
            for name, found in listed.items():
                if rows.get(name) is None:
                    rows.set(name, Row(found.etag, None))

    def _bring_into_step(self) -> None:
        """Forget what is here and not what the bucket has; call it as the only one who writes the folder."""
        listed = self._listed()
        with self._index.changing() as rows:
            known, here = rows.all(), self._here()
            for name, found in listed.items():
                row = known.get(name)
                if row is None or row.etag != found.etag or (row.stamp is not None and row.stamp != here.get(name)):
                    rows.set(name, Row(found.etag, None))
                elif row.stamp is not None:
                    here.pop(name)
            for name in known.keys() - listed.keys():
                rows.remove(name)
            for name in here:
                # Small files are replaced when they have come, so that who looks meanwhile finds the old ones.
                if name not in listed or not is_wanted_at_once(name):
                    (self.root / name).unlink()

    def _here(self) -> dict[str, str]:
        """Files of the store in the folder, to their stamps."""
        found = {}
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if name not in _MACHINE_FOLDERS and not name.startswith(TEMPORARY)]
            for path in map(Path(folder).joinpath, names):
                name = path.relative_to(self.root).as_posix()
                if is_shared(name):
                    found[name] = _stamp(path)
        return found

    def _changes(self) -> tuple[list[str], list[str]]:
        """Names of files that differ from their objects, and of objects whose files were removed."""
        with self._index.changing() as rows:
            known, here = rows.all(), self._here()
        changed = [name for name, stamp in here.items() if name not in known or known[name].stamp != stamp]
        gone = [name for name, row in known.items() if row.stamp is not None and name not in here]
        return changed, gone

    def _written_at(self, name: str) -> int:
        return (self.root / name).stat().st_mtime_ns

    def _put(self, lease: Lease, names: Iterable[str]) -> None:
        def put(name: str) -> tuple[str, Row]:
            lease.confirm()
            stamp = _stamp(self.root / name)
            return name, Row(self._objects.put(name, self.root / name), stamp)

        written = each(put, names)
        with self._index.changing() as rows:
            for name, row in written:
                rows.set(name, row)

    def _delete(self, lease: Lease, names: Iterable[str]) -> None:
        def delete(name: str) -> str:
            lease.confirm()
            self._objects.delete(name)
            return name

        deleted = each(delete, names)
        with self._index.changing() as rows:
            for name in deleted:
                rows.remove(name)

    def _download(self, name: str) -> tuple[Path, str | None]:
        temporary = self.root / f"{TEMPORARY}{this_process()}-{uuid.uuid4().hex}"
        return temporary, self._objects.download(name, temporary)

    def _put_into_place(self, rows: Rows, name: str, temporary: Path, etag: str | None) -> None:
        """Unless a process here has written the file, or removed it, in the meantime."""
        row = rows.get(name)
        if row is None or row.stamp is not None:
            temporary.unlink(missing_ok=True)
        elif etag is None:
            rows.remove(name)  # its writer has removed it
        else:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_wanted_at_once(name):
                temporary.replace(path)
                rows.set(name, Row(etag, _stamp(path)))
                return
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return
            finally:
                temporary.unlink()
            rows.set(name, Row(etag, _stamp(path)))


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
