"""Which conversations a command means."""

from __future__ import annotations

from collections.abc import Sequence

from kv_pipeline.errors import UsageError
from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.store import Store


def selected_conversations(store: Store, names: Sequence[str] | None = None) -> list[str]:
    """Sorted keys of the conversations that have traces.

    Args:
        store: The store.
        names: Only these: full ids, session ids, or unambiguous beginnings of session ids; all if None.

    Raises:
        UsageError: A name means no conversation, or several.
    """
    known = store.partitions(TRACES.name)
    if names is None:
        return known
    return sorted({_named(known, name) for name in names})


def _named(known: list[str], name: str) -> str:
    if name in known:
        return name
    found = [key for key in known if key.partition("/")[2].startswith(name)]
    if len(found) == 1:
        return found[0]
    what = f"There is no conversation {name!r}" if not found else f"{len(found)} conversations begin with {name!r}"
    raise UsageError(f"{what}. `kv-pipeline list` shows those there are.")
