"""What every table of a store depends on: settings, format version, salt; and how a store gets from one to another.

store.json   settings, with the format version and a digest of the salt
salt         secret of the store, mode 0600; none if it comes from the environment
salt.next    exists while the salt is being replaced: whoever opens the store finishes that first
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from kv_pipeline.atomic import sync, write_bytes
from kv_pipeline.core.hashing import DEFAULT_BLOCK_SIZE, HASH_SCHEME, salted_digest
from kv_pipeline.core.normalise import NORMALISATION
from kv_pipeline.core.tokenizer import TOKENIZER_NAME, VOCABULARY_SHA256
from kv_pipeline.errors import StoreError
from kv_pipeline.quarantine import forget_verified

FORMAT_VERSION: Final = 2
"""2: segments may have lost their text, which earlier versions stop at."""
SALT_VARIABLE: Final = "KV_PIPELINE_SALT"
UNSALTED: Final = frozenset({"transcript_answers", "transcript_agents", "transcript_compactions"})
"""Tables that no salt is in: what transcripts said. They may be all that is left of transcripts that are gone."""
_KEPT_FOLDERS: Final = UNSALTED | {"dagster"}
_NEXT: Final = "salt.next"
_SALT_BYTES: Final = 32
_REMEDY: Final = "Make it again from the landing folder with `kv-pipeline run --rebuild`, or use another --store"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every table of a store depends on; fixed when the store is made.

    Attributes:
        block_size: Tokens a block.
        keep_billing_header: Whether billing headers are hashed as sent.
        salt_check: Digest that tells a wrong salt from the right one.
    """

    format_version: int = FORMAT_VERSION
    block_size: int = DEFAULT_BLOCK_SIZE
    keep_billing_header: bool = False
    hash_scheme: str = HASH_SCHEME
    normalisation: str = NORMALISATION
    tokenizer: str = TOKENIZER_NAME
    vocabulary_sha256: str = VOCABULARY_SHA256
    salt_check: str = ""


def _as_it_is(_: Path) -> None:
    """Format 2 reads what format 1 wrote."""


MIGRATIONS: Final[Mapping[int, Callable[[Path], None]]] = {1: _as_it_is}
"""Format version to what makes the next one of it. A step may be repeated: a crash leaves the old version."""


def is_to_be_changed(root: Path) -> bool:
    """Whether opening a store makes it, migrates it, or finishes the replacement of its salt."""
    settings = read_settings(root)
    return settings is None or settings.format_version < FORMAT_VERSION or (root / _NEXT).exists()


def opened_settings(
    root: Path, block_size: int | None, keep_billing_header: bool | None, publish: Callable[[], None]
) -> tuple[Settings, bytes]:
    """Settings and salt of a store's folder, making or migrating it as needed; call it under the store's lock.

    Args:
        root: The folder.
        block_size: As of `Store.open`.
        keep_billing_header: Likewise.
        publish: Called where what was done so far must outlive what comes next.

    Raises:
        StoreError: As `Store.open`.
    """
    settings = read_settings(root)
    if settings is not None:
        settings = _migrated(root, settings)
        if (root / _NEXT).exists():
            settings = _with_next_salt(root, settings, publish)
    salt = _salt(root, is_new=settings is None)
    check = salt_check(salt)
    if settings is None:
        size = block_size or DEFAULT_BLOCK_SIZE
        settings = Settings(block_size=size, keep_billing_header=bool(keep_billing_header), salt_check=check)
        write_settings(root, settings)
    _check(root, settings, check, block_size, keep_billing_header)
    return settings, salt


def read_settings(root: Path) -> Settings | None:
    """Settings as they are recorded; None if there is no store.

    Raises:
        StoreError: They are damaged.
    """
    try:
        content = (root / "store.json").read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(content, type=Settings)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{root / 'store.json'} is damaged. Restore it, or start a new store.") from error


def write_settings(root: Path, settings: Settings) -> None:
    """Record settings."""
    write_bytes(root / "store.json", msgspec.json.format(msgspec.json.encode(settings)))


def salt_check(salt: bytes) -> str:
    """Digest that tells a wrong salt from the right one."""
    return salted_digest(salt, b"kv_pipeline salt check").hex()


def _publish_nothing() -> None:
    """A store that is a folder is there for everybody as it is written."""


def replace_salt(root: Path, publish: Callable[[], None] = _publish_nothing) -> Settings:
    """Give a store another salt; everything that the old one is in goes. Call it under the store's lock.

    Args:
        root: The store's folder.
        publish: As of `opened_settings`.

    Raises:
        StoreError: The salt comes from the environment and is still the old one.
    """
    settings = read_settings(root)
    if settings is None:
        raise StoreError(f"There is no store at {root}.")
    settings = _migrated(root, settings)
    given = _from_environment()
    if given is not None and salt_check(given) == settings.salt_check:
        raise StoreError(f"{SALT_VARIABLE} still holds the store's salt. Set it to the new one, then do this again.")
    # From here on the old salt is as good as gone: a crash is finished by whoever opens the store next.
    write_bytes(root / _NEXT, b"" if given is not None else secrets.token_bytes(_SALT_BYTES))
    publish()
    return _with_next_salt(root, settings, publish)


def empty_for_rebuild(root: Path) -> None:
    """Remove every table but those of transcripts, and take the settings of this version."""
    settings = read_settings(root)
    if settings is None:
        return
    if settings.format_version > FORMAT_VERSION:
        raise StoreError(_newer(root))
    _remove_salted(root)
    kept = Settings(
        block_size=settings.block_size,
        keep_billing_header=settings.keep_billing_header,
        salt_check=settings.salt_check,
    )
    write_settings(root, kept)


def _with_next_salt(root: Path, settings: Settings, publish: Callable[[], None]) -> Settings:
    _remove_salted(root)
    publish()
    given = _from_environment()
    salt = given if given is not None else (root / _NEXT).read_bytes()
    if not salt:
        raise StoreError(f"The salt of the store at {root} was being replaced by {SALT_VARIABLE}. Set it again.")
    settings = msgspec.structs.replace(settings, salt_check=salt_check(salt))
    write_settings(root, settings)
    publish()
    if given is not None:
        (root / "salt").unlink(missing_ok=True)
        (root / _NEXT).unlink()
    else:
        (root / _NEXT).replace(root / "salt")
    sync(root)
    publish()
    return settings


def _remove_salted(root: Path) -> None:
    """State first: without it nothing counts as up to date."""
    folders = [path for path in root.iterdir() if path.is_dir() and path.name not in _KEPT_FOLDERS]
    for folder in sorted(folders, key=lambda path: path.name != "state"):
        shutil.rmtree(folder)
    forget_verified(root)


def _migrated(root: Path, settings: Settings) -> Settings:
    if settings.format_version > FORMAT_VERSION:
        raise StoreError(_newer(root))
    while settings.format_version < FORMAT_VERSION:
        migrate = MIGRATIONS.get(settings.format_version)
        if migrate is None:
            found = f"has format {settings.format_version}, which this kv-pipeline can't migrate to {FORMAT_VERSION}"
            raise StoreError(f"The store at {root} {found}. {_REMEDY}.")
        migrate(root)
        settings = msgspec.structs.replace(settings, format_version=settings.format_version + 1)
        write_settings(root, settings)
    return settings


def _newer(root: Path) -> str:
    return f"The store at {root} was made by a newer kv-pipeline. Upgrade kv-pipeline to use it."


def _check(root: Path, found: Settings, check: str, block_size: int | None, keep_billing_header: bool | None) -> None:
    if found.salt_check != check:
        raise StoreError(f"The salt of the store at {root} is not the one it was made with. Restore it.")
    current = Settings(
        block_size=block_size or found.block_size,
        keep_billing_header=found.keep_billing_header if keep_billing_header is None else keep_billing_header,
        salt_check=check,
    )
    if found == current:
        return
    old, new = msgspec.to_builtins(found), msgspec.to_builtins(current)
    different = [name for name in old if old[name] != new[name]]
    names = ", ".join(f"{name} is {old[name]}, not {new[name]}" for name in different)
    remedy = _asked_otherwise(different)
    raise StoreError(f"The store at {root} has other settings: {names}. {remedy}")


def _asked_otherwise(different: Iterable[str]) -> str:
    is_asked = set(different) <= {"block_size", "keep_billing_header"}
    return "Use another --store for these." if is_asked else f"{_REMEDY}."


def _salt(root: Path, *, is_new: bool) -> bytes:
    given = _from_environment()
    if given is not None:
        return given
    path = root / "salt"
    if not path.exists():
        if not is_new:
            raise StoreError(f"The store at {root} has lost its salt. Restore the file `salt` or {SALT_VARIABLE}.")
        write_bytes(path, secrets.token_bytes(_SALT_BYTES))
    return path.read_bytes()


def _from_environment() -> bytes | None:
    text = os.environ.get(SALT_VARIABLE)
    return hashlib.blake2b(text.encode(), digest_size=_SALT_BYTES).digest() if text else None
