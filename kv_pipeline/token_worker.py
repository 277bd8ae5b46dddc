"""The program of the process that tokenises; see `token_process`.

It is run as a file, and imports as little as it can: how soon it is ready decides what it is good for. It takes the
vocabulary's path and the folders to import from, then answers requests until its input ends.

A request is the number of texts, the length of each in bytes, then the texts as UTF-8. An answer is the number of
tokens of each text, then the ids of all. All numbers are u32 in the machine's byte order: it is one machine.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from typing import BinaryIO


def main() -> None:
    """Load the vocabulary, then answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is the end of the input
    vocabulary, *sys.path[:] = sys.argv[1:]
    serve(vocabulary, sys.stdin.buffer, sys.stdout.buffer)


def serve(vocabulary: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more.

    Args:
        vocabulary: Path of a file that has been verified.
        requests: Where they come from.
        answers: Where token ids go.
    """
    _import_bare("gigatoken")
    from gigatoken.gigatoken_rs import BPETokenizer

    tokenizer = BPETokenizer.from_tiktoken(vocabulary, "cl100k", None)
    import numpy as np

    tokenizer.encode(b"")
    while count := requests.read(4):
        lengths = np.frombuffer(requests.read(4 * int.from_bytes(count, sys.byteorder)), np.uint32)
        texts, ends = requests.read(int(lengths.sum())), lengths.cumsum(dtype=np.int64).tolist()
        found = [tokenizer.encode(texts[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        answers.write(np.array([len(ids) for ids in found], np.uint32).tobytes())
        for ids in found:
            answers.write(ids.tobytes())
        answers.flush()


def _import_bare(package: str) -> None:
    """Have a package without what its `__init__` imports, of which only the extension module is needed."""
    spec = importlib.util.find_spec(package)
    if spec is not None and package not in sys.modules:
        sys.modules[package] = importlib.util.module_from_spec(spec)


if __name__ == "__main__":
    main()
