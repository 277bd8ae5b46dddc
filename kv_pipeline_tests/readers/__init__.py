"""Published readers of our exports, each in an environment of its own.

The modules here are programs that run there, without this package: paths in, JSON out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

VARIABLE: Final = "KV_PIPELINE_READERS"
_PYTHON: Final = os.environ.get(VARIABLE) or sys.executable


@cache
def _is_installed(name: str, version: str) -> bool:
    program = f"import importlib.metadata as m; raise SystemExit(m.version('{name}') != '{version}')"
    return subprocess.run([_PYTHON, "-c", program], capture_output=True, check=False, timeout=60).returncode == 0


def needs(name: str, version: str) -> pytest.MarkDecorator:
    """A mark for tests that take a reader."""
    reason = f"an independent reader: pip install {name}=={version}, and put that environment's python into {VARIABLE}"
    return pytest.mark.skipif(not _is_installed(name, version), reason=reason)


needs_libcachesim = needs("libcachesim", "0.3.5")
needs_dynamo = needs("ai-dynamo-runtime", "1.6.1")


def answer_of(program: str, *arguments: object) -> list[Any]:
    """What a program of this folder prints."""
    command = [_PYTHON, str(Path(__file__).with_name(program)), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=300)
    answer: list[Any] = json.loads(done.stdout)
    return answer
