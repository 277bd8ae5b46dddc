from __future__ import annotations

import math

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.blocks import BlockTree
from kv_pipeline.core.hashing import hashes_to_u64
from kv_pipeline.core.sections import RequestSegments, SectionTokenizer, SegmentContent
from kv_pipeline.core.simulate import LIFETIMES_S
from kv_pipeline.core.tokenizer import encoder
from kv_pipeline.core.validation import conversation_hits, report_rows, shared_hits, summarise
from kv_pipeline.schemas.blocks import VALIDATION_REPORT, VALIDATION_SUMMARY
from kv_pipeline.schemas.columns import hash_lists, polars_schema
from kv_pipeline.store import check
from kv_pipeline_tests import oracle
from kv_pipeline_tests.factories import SALT, at

MESSAGES = [{"role": "user", "content": word} for word in ("one", "two", "three")]
CONTENTS = {index: SegmentContent(oracle.compact(message)) for index, message in enumerate(MESSAGES)}


@st.composite
def conversation(draw, number=0):
    """Requests of (seconds, agent, model, messages)."""
    times = sorted(draw(st.lists(st.sampled_from([0, 1, 200, 299, 301, 599, 4000]), min_size=1, max_size=6)))
    agents, models = st.sampled_from(["main", "a"]), st.sampled_from(["m", "n"])
    messages = st.lists(st.integers(0, 2), max_size=3)
    return [(time, draw(agents), draw(models), tuple(draw(messages))) for time in times]


def blocks_of(conversation_id, requests):
    tree = BlockTree(SALT, 2, SectionTokenizer(encoder(), CONTENTS))
    found = [tree.add(RequestSegments(None, None, messages)) for *_, messages in requests]
    return pl.DataFrame(
        {
            "conversation_id": [conversation_id] * len(requests),
            "request_index": pl.Series(range(len(requests)), dtype=pl.UInt32),
            "agent_id": [agent for _, agent, *_ in requests],
            "model": [model for _, _, model, _ in requests],
            "requested_at_utc": pl.Series([at(time) for time, *_ in requests], dtype=pl.Datetime("us", "UTC")),
            **{
                name: [getattr(b, name) for b in found] for name in ("tools_tokens", "system_tokens", "messages_tokens")
            },
            "prefix_request_index": [b.prefix_request for b in found],
            "shared_blocks": [b.shared_blocks for b in found],
            "agent_shared_blocks": [0] * len(found),
            "new_block_hashes": hash_lists([hashes_to_u64(b.new_hashes) for b in found]),
        }
    )


def path_of(messages):
    return oracle.prompt({"messages": [MESSAGES[index] for index in messages]}, SALT, 2).hashes


def found_hits(frame, scope, lifetime):
    rows = frame.filter((pl.col("scope") == scope) & (pl.col("lifetime") == lifetime))
    return rows.sort("conversation_id", "request_index")["hit_blocks"].to_list()


@settings(max_examples=60)
@given(conversation())
def test_hits_of_a_conversation(requests):
    frame = conversation_hits(blocks_of("u/c", requests))
    for lifetime, seconds in LIFETIMES_S.items():
        by_model = oracle.hit_blocks([(model, time, path_of(m)) for time, _, model, m in requests], seconds)
        by_agent = oracle.hit_blocks([((a, model), time, path_of(m)) for time, a, model, m in requests], seconds)
        assert found_hits(frame, "conversation", lifetime) == by_model
        assert found_hits(frame, "agent", lifetime) == by_agent


@settings(max_examples=60)
@given(st.lists(conversation(), min_size=1, max_size=3))
def test_hits_of_conversations_that_share_a_cache(conversations):
    frame = shared_hits([blocks_of(f"u/{i}", requests) for i, requests in enumerate(conversations)], "fleet")
    in_order = sorted(
        (time, i, row, model, messages)
        for i, requests in enumerate(conversations)
        for row, (time, _, model, messages) in enumerate(requests)
    )
    for lifetime, seconds in LIFETIMES_S.items():
        hits = oracle.hit_blocks([(model, time, path_of(m)) for time, _, _, model, m in in_order], seconds)
        by_request = sorted((i, row, n) for (_, i, row, *_), n in zip(in_order, hits, strict=True))
        assert found_hits(frame, "fleet", lifetime) == [n for *_, n in by_request]


def test_no_conversations_share_nothing():
    assert shared_hits([], "fleet").is_empty()


def report(*rows):
    """Rows of (prompt tokens, hit blocks, billed prompt, billed read)."""
    columns = [
        ("u/c", index, "main", "m", "agent", "5m", prompt, hits, hits * 64, billed, read)
        for index, (prompt, hits, billed, read) in enumerate(rows)
    ]
    return check(VALIDATION_REPORT, pl.DataFrame(columns, schema=polars_schema(VALIDATION_REPORT), orient="row"))


def test_summary_is_made_of_billed_requests():
    summary = check(
        VALIDATION_SUMMARY, summarise(report((640, 2, 1000, 200), (64, 1, 100, 0), (999, 1, None, None)), 64)
    )
    (row,) = summary.to_dicts()
    assert (row["n_requests"], row["prompt_tokens"], row["hit_tokens"]) == (2, 704, 192)
    assert (row["billed_prompt_tokens"], row["billed_read_tokens"]) == (1100, 200)
    assert row["n_within_one_block"] == 2


def test_within_one_block_is_measured_in_billed_tokens():
    # Two billed tokens a counted one: a block is 128 billed tokens, 10 blocks are 1280.
    close = [(640, 10, 1280, 1280 - 128), (640, 10, 1280, 1280)]
    far = [(640, 10, 1280, 1280 - 129), (640, 0, 1280, 129)]
    assert summarise(report(*close, *far), 64)["n_within_one_block"].to_list() == [2]


def test_report_rows_count_tokens_of_hits():
    hits = pl.DataFrame(
        {"conversation_id": ["u/c"], "request_index": [0], "scope": ["agent"], "lifetime": ["5m"], "hit_blocks": [3]},
        schema_overrides={"request_index": pl.UInt32, "hit_blocks": pl.UInt32},
    )
    billed = report((640, 0, 1000, 200)).drop("scope", "lifetime", "hit_blocks", "hit_tokens")
    (row,) = check(VALIDATION_REPORT, report_rows(billed, hits, 16)).to_dicts()
    assert (row["hit_blocks"], row["hit_tokens"], row["billed_read_tokens"]) == (3, 48, 200)
    assert math.isfinite(row["prompt_tokens"])
