from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.api_model import ApiCache, Bill, Use
from kv_pipeline.core.api_rules import HISTORY, rules_at, with_collapsed_tool_runs
from kv_pipeline.core.content_blocks import ContentBlock
from kv_pipeline.core.lengths import LengthBook
from kv_pipeline.core.prompts import Breakpoint, Request, Section, Segment, Sent, Settings
from kv_pipeline_tests import oracle_api
from kv_pipeline_tests.core.bodies import EXACTLY_AS_COUNTED, MARK, MARK_1H, bill, body, explain_bodies, text, user

KINDS = ("text", "tool_use", "tool_result")
SMALL_LOOK_BACK = 3


def block(name: int, kind: str) -> ContentBlock:
    number = name * 3 + KINDS.index(kind)
    return ContentBlock(kind, number, number, False, False, False, False, 1 + name % 3, ())


@st.composite
def traffic(draw):
    """Requests over few blocks, so that prefixes meet, expire and overlap."""
    requests, at_s = [], 0.0
    for _ in range(draw(st.integers(1, 8))):
        at_s += draw(st.sampled_from([0.0, 1.0, 299.0, 301.0, 3600.0]))
        names = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(KINDS)), max_size=6)
        sections = {"tools": draw(names)[:2], "system": draw(names)[:2], "messages": draw(names)}
        blocks = [(section, *chosen) for section, listed in sections.items() for chosen in listed]
        marks = draw(
            st.dictionaries(st.integers(0, max(0, len(blocks) - 1)), st.sampled_from(["5m", "1h"]), max_size=5)
        )
        agent = draw(st.sampled_from([None, "a", "b"]))
        began_s = at_s + draw(st.sampled_from([0.0, 0.5, 400.0]))
        requests.append((blocks, marks if blocks else {}, at_s, began_s, agent))
    return requests


def as_asked(request) -> oracle_api.Asked:
    blocks, marks, *rest = request
    named = [(section, kind, f"{name}", 1 + name % 3) for section, name, kind in blocks]
    # A message a block: the tree tells messages of one block from one message of several.
    return oracle_api.Asked(named, marks, *rest)


def through_the_model(requests, minimum_tokens, rules) -> list[oracle_api.Billed]:
    segments: dict[int, Segment] = {}
    built, count = [], itertools.count()
    for blocks, marks, *_ in requests:
        parts: dict[str, list[int]] = {"tools": [], "system": [], "messages": []}
        breakpoints = []
        for index, (section, name, kind) in enumerate(blocks):
            place = len(parts[section])
            parts[section].append(index)
            if index in marks:
                at = (0, place) if section != "messages" else (place, 0)
                breakpoints.append(Breakpoint(Section[section.upper()], *at, marks[index]))
            if section == "messages":
                segments[name * 3 + KINDS.index(kind)] = Segment("user", (block(name, kind),))
        numbers = {}
        for section in ("tools", "system"):
            held = tuple(block(*blocks[index][1:]) for index in parts[section])
            numbers[section] = 100 + next(count)
            segments[numbers[section]] = Segment(None, held)
        messages = tuple(blocks[index][1] * 3 + KINDS.index(blocks[index][2]) for index in parts["messages"])
        built.append(Request(Settings("m"), numbers["tools"], numbers["system"], messages, tuple(breakpoints)))
    tree, prompts = Sent(built, segments).place()
    cache = ApiCache(tree, LengthBook(tree, {"m": EXACTLY_AS_COUNTED._replace(framing_tokens=0)}))
    found = []
    for prompt, (_, _, at_s, began_s, agent) in zip(prompts, requests, strict=True):
        use = Use(prompt, "m", "ada", agent, at_s, began_s, minimum_tokens, rules, None)
        expected = cache.use(use).bill
        found.append(
            oracle_api.Billed(
                expected.read_tokens, expected.write_5m_tokens, expected.write_1h_tokens, expected.input_tokens
            )
        )
    return found


@settings(max_examples=400, deadline=None)
@given(traffic(), st.sampled_from([0, 4, 8]), st.booleans())
def test_the_model_bills_as_the_obvious_cache(requests, minimum_tokens, collapses):
    rules = HISTORY[0]._replace(look_back_positions=SMALL_LOOK_BACK, collapses_tool_runs=collapses)
    slow = oracle_api.bill_all([as_asked(r) for r in requests], minimum_tokens, SMALL_LOOK_BACK, collapses)
    assert through_the_model(requests, minimum_tokens, rules) == slow


def predicted(*bodies, **options):
    return [found.prediction for found in explain_bodies(*bodies, **options)]


ASK = user(text("one two three", cache_control=MARK))
GO_ON = (user(text("one two three")), user(text("four", cache_control=MARK)))


def test_lengths_are_taken_from_earlier_bills():
    first, second, third = predicted(
        body(ASK, bill=bill(0, 1000, 7)), body(*GO_ON, bill=bill(1000, 50, 7)), body(*GO_ON, bill=bill(1050, 0, 7))
    )
    assert (first.read.tokens, second.read, third.read) == (0, (1000, True), (1050, True))
    assert third.bill == Bill(7, 1050, 0, 0)


def test_a_read_tells_the_length_of_a_prefix_that_was_never_billed_alone():
    system = [text("a b c d e f g h i j", cache_control=MARK)]
    others = [body(user(text(name, cache_control=MARK)), system=system) for name in ("one", "two", "three")]
    for one, billed in zip(others, (bill(0, 40), bill(36, 4), bill(36, 9)), strict=True):
        one["bill"] = billed
    _, second, third = predicted(*others)
    assert not second.read.is_billed
    assert abs(second.read.tokens - 36) < 4  # in proportion within the 40 tokens that were billed
    assert third.read == (36, True)


def test_a_read_that_cannot_be_that_prefix_is_not_taken_for_its_length():
    system = [text("word " * 500, cache_control=MARK)]
    others = [body(user(text(name, cache_control=MARK)), system=system) for name in ("one", "two", "three")]
    for one, billed in zip(others, (bill(0, 520), bill(20, 500), bill(0, 520)), strict=True):
        one["bill"] = billed
    assert abs(predicted(*others)[2].read.tokens - 505) < 20


def test_mixed_lifetimes_are_billed_from_hit_to_last_hour_to_last_mark():
    system = [text("a b c", cache_control=MARK_1H)]
    only = predicted(body(ASK, system=system))[0]
    tools_and_system = only.bill.write_1h_tokens
    assert tools_and_system > 0
    assert only.bill.write_5m_tokens > 0
    later = predicted(body(ASK, system=system), body(*GO_ON, system=system, at_s=400))[1]
    assert later.bill.read_tokens == tools_and_system  # the hour's entry lives, that of 5 minutes does not


def test_shared_prefixes_hold_tools_and_system_only():
    system = [text("a b c", cache_control=MARK)]
    tree_tokens = {}
    for shares in (False, True):
        tree, uses = two_owners(body(ASK, system=system))
        cache = ApiCache(tree, LengthBook(tree, {"claude-opus-5-5": EXACTLY_AS_COUNTED}), shares_prefixes=shares)
        tree_tokens[shares] = [cache.use(use).bill.read_tokens for use in uses]
    assert tree_tokens[False] == [0, 0]
    first, second = tree_tokens[True]
    assert first == 0
    assert 0 < second < tree.n_tokens(uses[1].prompt.end)


def two_owners(sent):
    from kv_pipeline_tests.core.bodies import Bodies

    bodies = Bodies()
    tree, (prompt,) = Sent([bodies.request(sent)], bodies.segments).place()
    return tree, [
        Use(prompt, sent["model"], owner, None, at_s, at_s, 0, HISTORY[0], None) for owner, at_s in (("a", 0), ("b", 9))
    ]


def test_rules_hold_from_their_day():
    newer = datetime(2026, 10, 1, tzinfo=UTC)
    history = with_collapsed_tool_runs(newer)
    assert not rules_at(newer - timedelta(seconds=1), history).collapses_tool_runs
    assert rules_at(newer, history).collapses_tool_runs
    assert rules_at(datetime(2020, 1, 1, tzinfo=UTC)) == HISTORY[0]
    assert [rules.valid_from_utc for rules in HISTORY] == sorted(rules.valid_from_utc for rules in HISTORY)
    assert all(rules.source for rules in HISTORY)
