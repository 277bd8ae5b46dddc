"""Other processes of ours."""

from __future__ import annotations

import os


def is_other_running(process: int) -> bool:
    """Whether a process is alive and not this one."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()
