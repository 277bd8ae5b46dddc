"""A tokenizer in a process of its own, so that loading the vocabulary and tokenising take no time from this one.

Loading takes about as long as reading a database of 40 MB, and holds the interpreter's lock, so a thread would gain
nothing. Reading a database starts the process, and by the time there is something to tokenise it is ready. Where
nothing was read, nothing would hide the start, and the vocabulary is loaded here.

Texts go through pipes, nowhere else. The process ends with its input, so it outlives nobody who started it. Should it
fail, the engine in this process does the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np

from kv_pipeline.core.hashing import TokenIds
from kv_pipeline.core.tokenizer import VOCABULARY_PATH, Engine, encoder, is_loaded, local_engine, verified_vocabulary
from kv_pipeline.errors import VocabularyError
from kv_pipeline.logs import detail

_WORKER: Final = Path(__file__).parent / "token_worker.py"
_CHUNK_BYTES: Final = 65_536
"""Text sent at a time: enough that sending costs little, little enough that the first tokens are there soon."""
_PIPE_BYTES: Final = 1024 * 1024
"""Most that Linux lets anybody have: a chunk and its answer fit, so that neither side waits for the other to read."""


class _Request:
    """Texts that were sent, and what came back."""

    def __init__(self, texts: list[bytes]) -> None:
        self.texts = texts
        self.answer: list[TokenIds] | None = None


class TokenProcess:
    """The process; one request is under way at a time, so it reads whatever is written to it.

    Args:
        command: What to run.
    """

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy is imported in half the time
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(  # noqa: S603  (this interpreter, a file of ours)
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment
        )
        for end in (self._input, self._output):
            _widen(end)
        self._under_way: _Request | None = None
        self._lock = threading.Lock()
        self.owner = os.getpid()

    def encode(self, text: str) -> TokenIds:
        """Token ids of a text, shape (n,)."""
        with self._lock:
            return self._answer(self._send([text.encode()]))[0]

    def stream(self, texts: Iterable[str]) -> Iterator[TokenIds]:
        """Token ids of each text in order; the next ones are made while the caller uses these."""
        before: _Request | None = None
        for chunk in _chunks(texts):
            with self._lock:
                ready = self._answer(before)
                before = self._send(chunk)
            yield from ready
        with self._lock:
            ready = self._answer(before)
        yield from ready

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._input.close()
        self._output.close()
        self._process.wait()

    @property
    def _input(self) -> BinaryIO:
        return cast("BinaryIO", self._process.stdin)

    @property
    def _output(self) -> BinaryIO:
        return cast("BinaryIO", self._process.stdout)

    def _send(self, texts: list[bytes]) -> _Request:
        self._answer(self._under_way)
        request = self._under_way = _Request(texts)
        lengths = np.array([len(texts), *map(len, texts)], np.uint32).tobytes()
        with contextlib.suppress(OSError, ValueError):  # it is gone, which the answer will show
            self._input.write(b"".join([lengths, *texts]))
            self._input.flush()
        return request

    def _answer(self, request: _Request | None) -> list[TokenIds]:
        if request is None:
            return []
        if request.answer is None:
            self._under_way = None
            try:
                request.answer = self._receive(len(request.texts))
            except (OSError, ValueError):
                detail("tokenised_without_process", texts=len(request.texts))
                request.answer = [encoder()(text.decode()) for text in request.texts]
        return request.answer

    def _receive(self, n_texts: int) -> list[TokenIds]:
        ends = self._numbers(n_texts).cumsum(dtype=np.int64).tolist()
        ids = self._numbers(ends[-1])
        return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _numbers(self, n: int) -> TokenIds:
        found = np.frombuffer(self._output.read(4 * n), np.uint32)
        if len(found) != n:
            self._output.close()
            raise ValueError("the process has ended")
        return found


_started: list[TokenProcess] = []


def prepare() -> None:
    """Start the process if there is a processor for it and a vocabulary still to be loaded."""
    has_processor = (os.cpu_count() or 1) > 1
    if has_processor and _own() is None and not is_loaded() and importlib.util.find_spec("gigatoken") is not None:
        with contextlib.suppress(OSError, VocabularyError):  # whoever tokenises will say so, if it can't be done here
            verified_vocabulary()
            _started[:] = [TokenProcess(worker_command())]


def worker_command() -> list[str]:
    """What to run: this interpreter, without what it would look for and import at its start."""
    return [sys.executable, "-I", "-S", str(_WORKER), str(VOCABULARY_PATH), *sys.path]


def engine() -> Engine:
    """The process that was started, or what there is in this one."""
    process = _own()
    return local_engine() if process is None else Engine(process.encode, process.stream)


def let_go() -> None:
    """Have no process, and no vocabulary in this one: with what it remembers of texts, either takes 100 MB."""
    close()
    local_engine.cache_clear()
    encoder.cache_clear()


@atexit.register
def close() -> None:
    """End the process, if there is one."""
    process = _own()
    _started.clear()
    if process is not None:
        process.close()


def _own() -> TokenProcess | None:
    """The process that this one started: pipes that a fork inherits are the parent's."""
    return next((process for process in _started if process.owner == os.getpid()), None)


def _widen(pipe: BinaryIO) -> None:
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or no more memory for pipes: only slower
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _chunks(texts: Iterable[str]) -> Iterator[list[bytes]]:
    chunk, n_bytes = list[bytes](), 0
    for text in texts:
        chunk.append(text.encode())
        n_bytes += len(chunk[-1])
        if n_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk
