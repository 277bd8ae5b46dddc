from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline import token_process, token_worker
from kv_pipeline.core import tokenizer
from kv_pipeline.token_process import TokenProcess, worker_command
from kv_pipeline_tests import oracle
from kv_pipeline_tests import strategies as some

TEXTS = ["", "a", '{"role":"user"}', "x" * 70_000, "b c " * 40_000, "é", "<|endoftext|>"]


@pytest.fixture(scope="module")
def process():
    started = TokenProcess(worker_command())
    yield started
    started.close()


@pytest.fixture
def nothing_loaded(monkeypatch):
    """As a process is before it has tokenised anything, on a machine with two processors."""
    token_process.close()
    monkeypatch.setattr(token_process, "is_loaded", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    yield
    token_process.close()


def expected(texts):
    return [oracle.encode(text) for text in texts]


def lists(found):
    return [ids.tolist() for ids in found]


@given(texts=st.lists(st.one_of(some.texts.filter(str.isascii), st.text(max_size=40)), max_size=8))
def test_equals_tiktoken(process, texts):
    assert lists(process.stream(texts)) == expected(texts)
    assert lists(map(process.encode, texts)) == expected(texts)


def test_ids_are_as_in_this_process(process):
    (found,) = process.stream(["some words"])
    assert found.dtype == np.uint32


def test_texts_larger_than_a_pipe_and_streams_in_each_other(process):
    outer, inner = process.stream(TEXTS * 2), process.stream(TEXTS)
    first = [next(outer), next(inner), process.encode("in between"), next(outer)]
    assert lists(first) == expected(["", "", "in between", "a"])
    assert lists(outer) == expected(TEXTS * 2)[2:]
    assert lists(inner) == expected(TEXTS)[1:]


def test_a_stream_that_nobody_reads_to_its_end_disturbs_nobody(process):
    next(process.stream(TEXTS))
    assert lists(process.stream(TEXTS)) == expected(TEXTS)


@pytest.mark.parametrize(
    "program",
    ["", "import sys; sys.stdin.buffer.read(8)", "import sys; sys.stdout.buffer.write(bytes(3))", "import absent"],
    ids=["ends", "reads a little", "answers a little", "fails"],
)
def test_what_a_process_does_not_answer_is_done_here(program):
    process = TokenProcess([sys.executable, "-c", program])
    assert lists(process.stream(TEXTS * 3)) == expected(TEXTS * 3)
    assert process.encode("more").tolist() == oracle.encode("more")
    process.close()


def test_one_that_is_killed_between_two_answers():
    process = TokenProcess(worker_command())
    coming = process.stream(TEXTS * 3)
    found = [next(coming)]
    os.kill(process._process.pid, signal.SIGKILL)
    assert lists([*found, *coming]) == expected(TEXTS * 3)
    process.close()


def test_reading_starts_it_once_and_everything_ends_it(nothing_loaded):
    token_process.prepare()
    engine = token_process.engine()
    token_process.prepare()
    assert token_process.engine() == engine
    assert engine.encode("a word").tolist() == oracle.encode("a word")
    child = engine.encode.__self__._process
    token_process.close()
    assert child.returncode == 0
    assert token_process.engine() == tokenizer.local_engine()


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (os, "cpu_count", lambda: 1),
        (token_process, "is_loaded", lambda: True),
        (token_process, "worker_command", lambda: ["/absent/python"]),
        (tokenizer, "VOCABULARY_SHA256", "0"),
        (token_process.importlib.util, "find_spec", lambda _: None),
    ],
    ids=["one processor", "loaded", "no process", "damaged vocabulary", "no gigatoken"],
)
def test_where_there_is_no_use_for_it_there_is_none(nothing_loaded, monkeypatch, place, name, value):
    monkeypatch.setattr(place, name, value)
    token_process.prepare()
    assert token_process._own() is None


def test_the_pipes_of_a_parent_are_not_used_after_a_fork(nothing_loaded, monkeypatch):
    token_process.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        assert token_process.engine() == tokenizer.local_engine()


def test_it_does_not_outlive_a_killed_parent():
    script = """
import os, signal
from kv_pipeline import token_process
os.cpu_count = lambda: 2
token_process.prepare()
print(token_process._own()._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        child = int(parent.communicate(timeout=60)[0])
    for _ in range(600):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if state_of(child) == "Z":
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail("the process is still there")


def state_of(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_the_worker_answers_until_its_input_ends():
    answers = io.BytesIO()
    texts = [b"two words", b""]
    request = struct.pack("=III", 2, *map(len, texts)) + b"".join(texts)
    token_worker.serve(str(tokenizer.VOCABULARY_PATH), io.BytesIO(request * 2), answers)
    ids = oracle.encode("two words")
    assert answers.getvalue() == struct.pack(f"={2 + len(ids)}I", len(ids), 0, *ids) * 2


def test_what_was_let_go_is_loaded_when_it_is_needed(nothing_loaded):
    token_process.prepare()
    assert lists(token_process.engine().stream(TEXTS)) == expected(TEXTS)
    tokenizer.local_engine()
    token_process.let_go()
    assert not tokenizer.is_loaded()
    assert token_process.engine() is tokenizer.local_engine()
    assert lists(token_process.engine().stream(TEXTS)) == expected(TEXTS)
