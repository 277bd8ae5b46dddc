"""What a store's folder is: all there is of the store, or a working copy of what lies in a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from kv_pipeline.errors import needs_extra
from kv_pipeline.remote.url import Location


class Folder:
    """A store that is a folder: there is nothing to fetch, and what is written is published.

    Args:
        root: The folder.
    """

    is_copy = False

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def location(self) -> Location:
        """Where the store is, as a user names it."""
        return self.root

    def __str__(self) -> str:
        return str(self.root)

    def refresh(self) -> None:
        """Get to know what others have published, to read it."""

    def writing(self, on_wait: Callable[[], None] | None = None) -> AbstractContextManager[None]:  # noqa: ARG002
        """Be the only one on any machine who publishes, and publish at the end; call it holding the writer lock."""
        return nullcontext()

    def publish(self) -> None:
        """Publish what was changed so far."""

    def publish_if_due(self) -> None:
        """The same, unless it was done a moment ago."""

    def fetch(self, names: Iterable[str]) -> None:
        """Have files of the store here, of those that it has."""

    def fetch_all(self) -> None:
        """Have all files of the store here."""

    def lacks(self, name: str) -> bool:
        """Whether the store has a file that is not here."""
        del name
        return False

    def unfetched(self, folder: str) -> list[str]:
        """Files below a folder that the store has, and that are not here."""
        del folder
        return []

    def drop(self, name: str) -> None:
        """Note that a file is being removed, be it here or not."""

    def restore(self, path: Path) -> bool:
        """Replace a damaged file by the store's own, if that is another; returns whether it was."""
        del path
        return False


def folder_of(location: Location) -> Folder:
    """The folder of a store, or the working copy of one in a bucket.

    Raises:
        UsageError: It is in a bucket, and the packages for these are not installed.
    """
    if isinstance(location, Path):
        return Folder(location.resolve())
    needs_extra("obstore", "objects", f"A store or landing folder such as {location}")
    from kv_pipeline.remote.working_copy import working_copy

    return working_copy(location)
