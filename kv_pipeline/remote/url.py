"""Where a store or a landing folder is: a folder, or a prefix of a bucket by URL; and where copies of these lie."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final, NewType
from urllib.parse import unquote, urlsplit

from kv_pipeline.errors import UsageError

ObjectUrl = NewType("ObjectUrl", str)
"""URL of a bucket, or of a prefix in one, without a slash at the end."""
Location = Path | ObjectUrl
SCHEMES: Final = ("s3", "gs", "az")
CACHE_VARIABLE: Final = "KV_PIPELINE_CACHE"
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
"""Variables that say whose bucket a URL means."""


def location(text: str | Path) -> Location:
    """What a user named: a path, or a URL.

    Raises:
        UsageError: The URL is of no kind that is known, names no bucket, or holds credentials.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    parts = urlsplit(text)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in (*SCHEMES, "file"))
        raise UsageError(f"URLs of the kind {parts.scheme}:// are not known. There are: {known}; or name a folder.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not quoted: this could be a secret.
        raise UsageError("A URL of a store or landing folder holds no credentials. Put them into the environment.")
    if not parts.netloc:
        raise UsageError(f"{text} names no bucket. URLs are as {parts.scheme}://bucket/prefix.")
    return ObjectUrl(f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/"))


def refuse_overlap(inbox: Location, store: Location) -> None:
    """Nothing is written to a landing folder, so a store in a bucket lies elsewhere.

    Raises:
        UsageError: One of the two prefixes is in the other.
    """
    if isinstance(inbox, Path) or isinstance(store, Path):
        return
    if f"{store}/".startswith(f"{inbox}/") or f"{inbox}/".startswith(f"{store}/"):
        raise UsageError(
            f"{inbox} and {store} lie in one another. Give landing folder and store prefixes of their own."
        )


def cache_of(url: ObjectUrl) -> Path:
    """Folder for copies of what lies under a URL; made if missing, for this user alone.

    Raises:
        UsageError: It can't be made, or others can get into it.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kv_pipeline"
    cache = Path(os.environ.get(CACHE_VARIABLE) or default)
    whose = repr((url, [os.environ.get(name) for name in _ENDPOINTS]))
    folder = cache.absolute() / hashlib.blake2b(whose.encode(), digest_size=16).hexdigest()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UsageError(
            f"{cache} can't be used for copies of {url}: {error.strerror}. Set {CACHE_VARIABLE}."
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UsageError(f"{folder} is not a folder of this user alone. Delete it, or set {CACHE_VARIABLE}.")
    return folder.resolve()
