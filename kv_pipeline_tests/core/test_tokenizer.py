from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kv_pipeline.core import tokenizer
from kv_pipeline.errors import VocabularyError
from kv_pipeline_tests import oracle
from kv_pipeline_tests import strategies as some

whole_texts = st.one_of(
    st.text(max_size=60),
    st.lists(some.texts.filter(lambda t: t.isprintable() or t.isascii()), max_size=6).map("".join),
)


@pytest.mark.parametrize("make", [tokenizer.encoder, tokenizer.reference_encoder])
@settings(max_examples=300)
@given(text=whole_texts)
@example(text="")
@example(text="<|endoftext|>'s \n\n  \t x")
@example(text=" " * 5000 + "a" * 3000 + "=" * 3000)
def test_every_engine_equals_tiktoken(make, text):
    found = make()(text)
    assert found.tolist() == oracle.encode(text)
    assert found.dtype == np.uint32


def test_gigatoken_is_the_engine():
    assert tokenizer.encoder() is not tokenizer.reference_encoder()


def test_pattern_is_tiktokens():
    assert oracle.encoding()._pat_str == tokenizer.CL100K_PATTERN


def forget_tokenizers():
    for function in vars(tokenizer).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """A place for another vocabulary, with no tokenizer loaded."""
    path = tmp_path / "cl100k_base.tiktoken"
    monkeypatch.setattr(tokenizer, "VOCABULARY_PATH", path)
    forget_tokenizers()
    yield path
    forget_tokenizers()


@pytest.mark.parametrize("make", [tokenizer.encoder, tokenizer.reference_encoder])
def test_one_changed_byte_is_noticed(damaged, make):
    content = bytearray(oracle.VOCABULARY.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(VocabularyError, match=r"has SHA-256 .* Reinstall"):
        make()


@pytest.mark.parametrize("make", [tokenizer.encoder, tokenizer.reference_encoder])
def test_a_missing_vocabulary_is_named(damaged, make):
    with pytest.raises(VocabularyError, match=r"cl100k_base\.tiktoken can't be read"):
        make()


def test_an_engine_that_fails_to_load_says_so(damaged, monkeypatch):
    def failing(path, pretokenizer):
        raise RuntimeError("no such pretokenizer")

    damaged.write_bytes(oracle.VOCABULARY.read_bytes())
    monkeypatch.setattr("gigatoken.Tokenizer.from_tiktoken", failing)
    with pytest.raises(RuntimeError, match="no such pretokenizer"):
        tokenizer.encoder()
