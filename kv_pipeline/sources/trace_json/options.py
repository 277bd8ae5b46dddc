"""What can be said about trace files that they don't say themselves."""

from __future__ import annotations

from enum import StrEnum


class NestedTimes(StrEnum):
    """What `t` inside a sub-agent counts from."""

    AUTO = "auto"
    """Each file is asked."""
    RELATIVE = "relative"
    """From the sub-agent's own `t`: kv-cache-tester's files and our exports."""
    ABSOLUTE = "absolute"
    """From the trace's start, as its own `t` does."""
