"""Stand-ins for tools and system prompts that nobody recorded."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from kv_pipeline.core.payloads import Payload, payload_tokens, unseen_payload
from kv_pipeline.core.tokenizer import encoder
from kv_pipeline.sources.transcript_requests.prefix import API_TOKENS_PER_TOKEN
from kv_pipeline_tests.factories import SALT
from kv_pipeline_tests.sources.transcript_requests.script import Read, Script, call, read_scripts, result, text


def n_tokens(words: str) -> int:
    return len(encoder()(words))


def length_of(read: Read, index: int | None) -> int:
    """Tokens of a segment as they are counted later."""
    if index is None:
        return 0
    row = read.segments.row(index, named=True)
    return n_tokens(row["text"]) + sum(payload["estimated_tokens"] for payload in row["payloads"])


def prefix_of(read: Read, message_id: str) -> tuple[int | None, int | None]:
    row = read.row(message_id)
    return row["tools_segment"], row["system_segment"]


def snapshot(script: Script, system: list[str], **more: object) -> None:
    script.add("attachment", attachment={"type": "prompt_snapshot", "systemPrompt": system, **more})


def conversation(tokens: int = 5000, **fields: str) -> Script:
    script = Script(**fields)
    script.user("go")
    script.answer(f"{script.session_id}{script.agent_id}-1", [call("a")], tokens)
    script.user([result("a", "many lines " * 500)])
    script.answer(f"{script.session_id}{script.agent_id}-2", [text("done")], 2 * tokens)
    return script


def test_first_bill_less_the_messages(tmp_path):
    read = read_scripts(tmp_path, conversation())
    tools, system = prefix_of(read, "s1None-1")
    assert tools is None
    messages = n_tokens(json.dumps({"role": "user", "content": [text("go")]}, separators=(",", ":")))
    assert length_of(read, system) == pytest.approx(5000 / API_TOKENS_PER_TOKEN - messages, abs=1)
    assert prefix_of(read, "s1None-2") == (tools, system)


def test_it_says_nothing_that_looks_like_content(tmp_path):
    read = read_scripts(tmp_path, conversation())
    row = read.segments.row(prefix_of(read, "s1None-1")[1] or 0, named=True)
    assert row["text"] == '[{"type":"base64","data":""}]'
    assert (row["kind"], row["n_content_blocks"]) == ("system", 1)
    (payload,) = row["payloads"]
    tokens = payload_tokens(Payload(**payload))
    assert (tokens >= 2**31).all()


def test_equal_kinds_have_equal_prefixes(tmp_path):
    one, two = conversation(), conversation(9000, agent_id="x")
    other = conversation(5000, agent_id="y", version="2.2.0")
    two_as_one = read_scripts(tmp_path, one, two, other)
    assert prefix_of(two_as_one, "s1None-1") != prefix_of(two_as_one, "s1x-1")  # another type of agent
    digests = {
        message: two_as_one.segments["payloads"][prefix_of(two_as_one, message)[1] or 0][0]["digest"]
        for message in ("s1None-1", "s1None-2", "s1x-1", "s1y-1")
    }
    assert digests["s1None-1"] == digests["s1None-2"]
    assert len(set(digests.values())) == 3


def test_a_later_session_of_the_kind_has_the_length_of_the_first(tmp_path):
    first, later = conversation(5000), conversation(7000, session_id="s2")
    for record in later.records:
        record["timestamp"] = record["timestamp"].replace("2026-03-02", "2026-03-03")
    read = read_scripts(tmp_path, later, first)
    assert prefix_of(read, "s2None-1") == prefix_of(read, "s1None-1")


def test_without_a_bill_there_is_none(tmp_path):
    script = Script()
    script.user("go")
    script.answer("m1", [text("hi")])
    del script.records[-1]["message"]["usage"]
    read = read_scripts(tmp_path, script)
    assert prefix_of(read, "m1") == (None, None)
    assert read.row("m1")["input_tokens"] is None


def test_a_bill_below_the_messages_leaves_nothing_to_stand_in_for(tmp_path):
    script = Script()
    script.user("many words " * 400)
    script.answer("m1", [text("hi")], 20)
    assert prefix_of(read_scripts(tmp_path, script), "m1") == (None, None)


def test_a_snapshot_is_real_content(tmp_path):
    script = Script()
    script.user("go")
    snapshot(script, ["Be brief.", "Be kind."])
    script.answer("m1", [call("a")], 5000)
    script.user([result("a")])
    schema = {"name": "Read", "input_schema": {"type": "object"}}
    snapshot(
        script, ["Be brief.", "Be kind."], cliPrefix="You are a client.", tools=[{"name": "Read", "schema": schema}]
    )
    script.answer("m2", [text("done")], 6000)
    read = read_scripts(tmp_path, script)
    known, system = prefix_of(read, "m1")
    assert read.text_of(system) == [text("You are a client."), text("Be brief.\n\nBe kind.")]
    assert read.text_of(known) == [{"type": "base64", "data": ""}, schema]
    assert prefix_of(read, "m2") == (known, system)
    messages = length_of(read, read.row("m1")["message_segments"][0])
    whole = length_of(read, known) + length_of(read, system) + messages
    assert whole == pytest.approx(5000 / API_TOKENS_PER_TOKEN, abs=5)
    assert [mark["block_index"] for mark in read.row("m1")["breakpoints"] if mark["section"] == "system"] == [0, 1]


def test_another_snapshot_is_another_prompt(tmp_path):
    script = Script()
    script.user("go")
    snapshot(script, ["Be brief."])
    script.answer("m1", [text("hi")], 5000)
    script.user("more")
    snapshot(script, ["Be long."])
    script.answer("m2", [text("hi")], 6000)
    read = read_scripts(tmp_path, script)
    texts = [read.text_of(prefix_of(read, message)[1]) for message in ("m1", "m2")]
    assert texts == [[text("Be brief.")], [text("Be long.")]]


@pytest.mark.parametrize("lifetime", ["5m", "1h"])
def test_assumed_breakpoints_ask_for_the_lifetime_that_the_client_noted(tmp_path, lifetime):
    script = Script()
    script.user("go")
    script.answer("m1", [text("hi")], 5000, promptCacheRequested=lifetime)
    assert {mark["ttl"] for mark in read_scripts(tmp_path, script).row("m1")["breakpoints"]} == {lifetime}


def test_an_agent_that_was_billed_for_an_hour_asks_for_one(tmp_path):
    script, other = conversation(), conversation(agent_id="x")
    usage = script.records[1]["message"]["usage"]
    usage["cache_creation"] = {"ephemeral_1h_input_tokens": usage["cache_creation_input_tokens"]}
    read = read_scripts(tmp_path, script, other)
    lifetimes = {message: {mark["ttl"] for mark in read.row(message)["breakpoints"]} for message in
                 ("s1None-1", "s1None-2", "s1x-1")}  # fmt: skip
    assert lifetimes == {"s1None-1": {"1h"}, "s1None-2": {"1h"}, "s1x-1": {"5m"}}


def test_stand_in_tokens_depend_on_the_key_alone():
    one, again, other = (unseen_payload(SALT, key, 100) for key in (b"a", b"a", b"b"))
    longer = unseen_payload(SALT, b"a", 200)
    assert np.array_equal(payload_tokens(one), payload_tokens(again))
    assert np.array_equal(payload_tokens(one), payload_tokens(longer)[:100])
    assert not np.array_equal(payload_tokens(one), payload_tokens(other))
    assert unseen_payload(SALT, b"a", 0).estimated_tokens == 1


def test_rows_are_the_same_whatever_else_is_read(tmp_path):
    """Row ids and digests come from content: what a transcript gains changes no row before it."""
    script = conversation()
    before = read_scripts(tmp_path, script).rows
    script.user("more")
    script.answer("m3", [text("yes")], 9000)
    after = read_scripts(tmp_path, script).rows
    columns = ["row_id", "row_digest", "content_id"]
    assert after.filter(pl.col("message_id") != "m3").select(columns).equals(before.select(columns))
