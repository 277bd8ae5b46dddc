"""Requests as segments, tokenised and hashed piece by piece, against whole strings tokenised and hashed anew."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.blocks import NO_REQUEST, BlockTree
from kv_pipeline.core.hashing import hashes_to_u64
from kv_pipeline.core.normalise import SegmentKind
from kv_pipeline.core.paths import block_paths
from kv_pipeline.core.payloads import Payload, payload_tokens
from kv_pipeline.core.sections import RequestSegments, SectionTokenizer, SegmentContent
from kv_pipeline.core.tokenizer import encoder, local_engine, reference_encoder
from kv_pipeline.sources.interning import SegmentInterner
from kv_pipeline_tests import oracle
from kv_pipeline_tests import strategies as some
from kv_pipeline_tests.factories import SALT

NOTHING = np.empty(0, dtype=np.uint32)


class Hashed:
    """Requests put through segments and the block tree."""

    def __init__(self, bodies, block_size, encode=None, ascii_only=True, keep_billing_header=False, is_ahead=False):
        self.rows = []
        self._ascii_only = ascii_only
        self._interner = SegmentInterner(SALT, keep_billing_header, self.rows.extend)
        requests = [self._segments(body) for body in bodies]
        self._interner.flush()
        contents = {index: self._content(text, payloads) for index, *_, text, payloads in self.rows}
        ahead = SectionTokenizer.ahead(local_engine(), contents)
        tokenizer = ahead if is_ahead else SectionTokenizer(encode or encoder(), contents)
        tree = BlockTree(SALT, block_size, tokenizer)
        self.blocks = [tree.add(request) for request in requests]
        self.tokens = [
            [token for run in tokenizer.runs(request) for token in tokenizer.tokens(run).tolist()]
            for request in requests
        ]

    def _segments(self, body):
        tools = None if body["tools"] is None else self._intern(SegmentKind.TOOLS, body["tools"])
        system = None if body["system"] is None else self._intern(SegmentKind.SYSTEM, body["system"])
        return RequestSegments(tools, system, tuple(self._intern(SegmentKind.MESSAGE, m) for m in body["messages"]))

    def _intern(self, kind, value):
        raw = json.dumps(value, ensure_ascii=self._ascii_only).encode("utf-8", "surrogatepass")
        return self._interner.intern(kind, raw).segment_index

    @staticmethod
    def _content(text, payloads):
        return SegmentContent(text, np.concatenate([NOTHING, *(payload_tokens(Payload(**p)) for p in payloads)]))

    @property
    def paths(self):
        """Per request its blocks' hashes, rebuilt from what is stored."""
        hashes = hashes_to_u64([h for b in self.blocks for h in b.new_hashes]).tolist()
        references = zip(*((b.prefix_request, b.shared_blocks, len(b.new_hashes)) for b in self.blocks), strict=True)
        return [[hashes[number] for number in path] for path in block_paths(*references)]


def assert_as_defined(bodies, block_size, **options):
    hashed = Hashed(bodies, block_size, **options)
    keep = options.get("keep_billing_header", False)
    expected = [oracle.prompt(body, SALT, block_size, keep_billing_header=keep) for body in bodies]
    assert hashed.tokens == [e.tokens for e in expected]
    assert hashed.paths == [e.hashes for e in expected]
    for found, e in zip(hashed.blocks, expected, strict=True):
        assert (found.tools_tokens, found.system_tokens) == (len(e.tools), len(e.system))
        assert found.messages_tokens == len(e.messages)
        assert found.n_blocks == len(e.tokens) // block_size == len(e.hashes)
        tail = None if found.tail_hash is None else int.from_bytes(found.tail_hash, "little")
        assert tail == oracle.tail_hash(e.tokens, SALT, block_size)
    return hashed


@settings(max_examples=250)
@given(some.bodies(), some.sizes, st.booleans(), st.booleans(), st.booleans())
def test_blocks_are_those_of_the_whole_strings(bodies, block_size, ascii_only, keep, is_ahead):
    options = {"ascii_only": ascii_only, "keep_billing_header": keep, "is_ahead": is_ahead}
    hashed = assert_as_defined(bodies, block_size, **options)
    stored = [h for b in hashed.blocks for h in b.new_hashes]
    assert len(stored) == len(set(stored)), "a block is stored once"


@settings(max_examples=60)
@given(some.bodies(), some.sizes)
def test_every_request_refers_to_the_longest_shared_prefix(bodies, block_size):
    paths = [oracle.prompt(body, SALT, block_size).hashes for body in bodies]
    for index, found in enumerate(Hashed(bodies, block_size).blocks):
        shared = [oracle.common_prefix(paths[index], before) for before in paths[:index]]
        longest = max(shared, default=0)
        assert found.shared_blocks == longest
        assert found.prefix_request == (shared.index(longest) if longest else -1)


@settings(max_examples=60)
@given(some.bodies())
def test_engines_agree_on_segments(bodies):
    assert Hashed(bodies, 4).tokens == Hashed(bodies, 4, encode=reference_encoder()).tokens


def body(*messages, tools=None, system=None):
    return {"tools": tools, "system": system, "messages": list(messages)}


IMAGE = {"type": "base64", "media_type": "image/png", "data": some.png(30, 50)}
DOCUMENT = {"type": "base64", "media_type": "application/pdf", "data": some.pdf(2)}
USER = {"role": "user", "content": "Hello, harbour."}
ODD = {"1": 2, "content": [{"source": IMAGE}]}


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param([body()], id="no messages"),
        pytest.param([body({})], id="an empty object"),
        pytest.param([body({}, {}, [], "", 0, None)], id="messages that are no objects"),
        pytest.param([body("'s", "'s")], id="strings that look like contractions"),
        pytest.param([body(1, USER, 12, 345, USER)], id="numbers beside objects"),
        pytest.param([body(USER, ODD, USER)], id="a key that is no letter, with an image"),
        pytest.param([body(ODD, ODD)], id="an odd message first"),
        pytest.param([body({"role": "user", "content": [{"source": IMAGE}, {"source": DOCUMENT}]})], id="payloads"),
        pytest.param([body(USER), body(USER, USER), body(USER), body(USER, USER, USER)], id="shrinks and grows"),
        pytest.param([body(USER, system=[{"source": IMAGE}], tools=[IMAGE])], id="payloads in other sections"),
        pytest.param([body({"role": "user", "content": "<|endoftext|>"})], id="special token's text"),
        pytest.param([body({"role": " " * 200}, {"role": "\n" * 99 + "\ud800"})], id="long runs"),
        pytest.param([body({"cache_control": 1, "role": "a"}, {"signature": 1, "1": 2})], id="first keys removed"),
    ],
)
@pytest.mark.parametrize("block_size", [1, 5])
@pytest.mark.parametrize("is_ahead", [False, True])
def test_odd_requests(bodies, block_size, is_ahead):
    assert_as_defined(bodies, block_size, is_ahead=is_ahead)


def test_the_same_tokens_in_other_sections_are_the_same_blocks():
    first, second = Hashed([body(USER, tools=["same"]), body(USER, system=["same"])], 1).blocks
    assert (first.prefix_request, first.shared_blocks) == (NO_REQUEST, 0)
    assert (second.prefix_request, second.shared_blocks, second.new_hashes) == (0, first.n_blocks, [])


def test_a_request_that_branches_off_refers_to_the_one_it_leaves():
    shared, other = {"role": "assistant", "content": "shared"}, {"content": "other first key", "role": "user"}
    bodies = [body(USER), body(USER, shared, USER), body(USER, shared, other)]
    first, second, branch = Hashed(bodies, 1).blocks
    assert branch.prefix_request == 1
    assert first.n_blocks < branch.shared_blocks < second.n_blocks
    assert_as_defined(bodies, 1)


def test_a_growing_conversation_is_tokenised_once():
    encoded = []

    def counting(text):
        encoded.append(text)
        return encoder()(text)

    messages = [{"role": "user", "content": f"message number {n} " * 20} for n in range(30)]
    Hashed([body(*messages[: n + 1]) for n in range(30)], 16, encode=counting)
    assert sum(map(len, encoded)) < 1.2 * len(json.dumps(messages))


def test_a_payload_is_identified_by_its_content():
    images = [{"role": "user", "content": [{"source": {**IMAGE, "data": some.png(30, n)}}]} for n in (40, 41, 40)]
    same, other, again = Hashed([body(image) for image in images], 1).paths
    assert same == again
    assert oracle.common_prefix(same, other) == len(oracle.encode('[{"'))
