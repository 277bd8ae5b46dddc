"""Links in a landing folder that many people can write to: which of them lead where their makers may not read.

A link of one user into another's folder would make the other's traffic theirs. A link out of the landing folder could
show any file that this process can read, so only those are followed that this process, root, or the owner of the file
made: what Linux's fs.protected_symlinks does for sticky folders.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from kv_pipeline.limits import follows_links

REMEDY = "Put the file itself there, or have the link made by the user that runs this."


class Bounds(NamedTuple):
    """Where a user's links may lead.

    Attributes:
        own: The user's folder; None to judge the folder itself.
        inbox: The landing folder, of which the rest is other users'.
    """

    own: Path | None
    inbox: Path

    def astray(self, path: Path) -> str | None:
        """What is wrong with a link; None of good ones, of other files, and of links to nothing."""
        if not path.is_symlink():
            return None
        target = path.resolve()
        if not target.exists() or (self.own is not None and target.is_relative_to(self.own.resolve())):
            return None
        if target.is_relative_to(self.inbox.resolve()):
            return "it is a link into another user's folder"
        owner = path.lstat().st_uid
        if not follows_links() or owner not in {os.geteuid(), 0, target.stat().st_uid}:
            return "it is a link out of the landing folder, made by somebody else"
        return None
