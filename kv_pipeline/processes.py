"""Processes of ours, on this machine and on others that share a store."""

from __future__ import annotations

import hashlib
import os
import socket


def this_process() -> str:
    """Name of this process among those of all machines: its id and a digest of the machine's name."""
    return f"{os.getpid()}@{this_machine()}"


def is_other_alive(process: str) -> bool | None:
    """Whether a process is alive and not this one; None if it is another machine's, whose processes we can't see.

    Args:
        process: As `this_process` gives; a mere number is one of this machine.
    """
    number, _, machine = process.partition("@")
    if machine and machine != this_machine():
        return None
    return number.isdigit() and int(number) != os.getpid() and _is_running(int(number))


def this_machine() -> str:
    """Digest of this machine's name."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
