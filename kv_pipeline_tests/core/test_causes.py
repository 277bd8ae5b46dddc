"""Each cause by the smallest pair of requests that has it, and by a decoy that looks like it."""

from __future__ import annotations

import base64
import struct
import zlib

import pytest

from kv_pipeline.core.causes import DESCRIPTIONS, UNAVOIDABLE, Cause
from kv_pipeline_tests.core.bodies import (
    MARK,
    MARK_1H,
    assistant,
    bill,
    body,
    explain_bodies,
    marked,
    text,
    tool,
    user,
)

ASKED = user(marked("How do I sort a list of words"))
ASKED_BEFORE = user(text("How do I sort a list of words"))
ANSWERED = assistant(text("Call sorted on it"))
THANKED = user(marked("Thanks"))
NEXT = (ASKED_BEFORE, ANSWERED, THANKED)
REMINDER = "<system-reminder>The list of tasks is empty.</system-reminder>"


def cause(*bodies, **options):
    """Cause of the last request's loss, having checked that its tokens add up."""
    found = explain_bodies(*bodies, **options)[-1]
    billed = bodies[-1].get("bill") or found.prediction.bill
    assert found.loss.new_tokens + found.loss.lost_tokens + billed.read_tokens == billed.prompt_tokens
    assert (found.loss.lost_tokens > 0) == (found.loss.cause not in UNAVOIDABLE)
    return found.loss.cause


def first_difference(*bodies):
    divergence = explain_bodies(*bodies)[-1].situation.divergence
    return None if divergence is None else (divergence.cause, divergence.section, divergence.place)


def png():
    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 750, 2, 8, 0, 0, 0, 0)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")).decode()


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png()}}


def result(content, **more):
    return {"type": "tool_result", "tool_use_id": "t1", "content": content, **more}


def call(**arguments):
    return assistant({"type": "tool_use", "id": "t1", "name": "Read", "input": arguments})


def history(first, *, system="You help."):
    """Two requests' bodies that differ in the first message, behind which the second goes on."""
    return body(user(*first, marked("Go")), system=[text(system)])


def continued(first, *, system="You help."):
    return body(user(*first, text("Go")), ANSWERED, THANKED, system=[text(system)])


def test_every_cause_is_described():
    assert DESCRIPTIONS.keys() == set(Cause)


# --- Nothing went wrong -----------------------------------------------------------------------------------------------


def test_new_content():
    assert cause(body(ASKED), body(*NEXT)) == Cause.NEW_CONTENT


def test_cold():
    assert cause(body(ASKED)) == Cause.COLD


def test_an_agents_first_request_is_cold_even_if_others_were_before():
    assert cause(body(ASKED), body(user(marked("Something else")), agent="other")) == Cause.COLD


# --- Time -------------------------------------------------------------------------------------------------------------


def test_lifetime_passed():
    assert cause(body(ASKED), body(*NEXT, at_s=301)) == Cause.LIFETIME_PASSED


@pytest.mark.parametrize(
    ("mark", "at_s"), [(MARK, 300), (MARK_1H, 301), (MARK_1H, 3600)], ids=["in time", "1 hour", "1 hour, in time"]
)
def test_lifetime_decoys(mark, at_s):
    asked = user(text("How do I sort a list of words", cache_control=mark))
    assert cause(body(asked), body(*NEXT, at_s=at_s)) == Cause.NEW_CONTENT


def test_an_hour_passes_too():
    asked = user(text("How do I sort a list of words", cache_control=MARK_1H))
    assert cause(body(asked), body(*NEXT, at_s=3601)) == Cause.LIFETIME_PASSED


def test_sibling_in_flight():
    shared = [text("A long system prompt that siblings share", cache_control=MARK)]
    one = body(user("Search here"), system=shared, began_s=5)
    other = body(user("Search there"), system=shared, agent="sibling", at_s=2)
    assert cause(one, other) == Cause.SIBLING_IN_FLIGHT


@pytest.mark.parametrize("at_s", [5, 6])
def test_a_sibling_that_has_begun_is_read(at_s):
    shared = [text("A long system prompt that siblings share", cache_control=MARK)]
    one = body(user("Search here"), system=shared, began_s=5)
    found = explain_bodies(one, body(user("Search there"), system=shared, agent="sibling", at_s=at_s))[-1]
    assert found.loss.cause == Cause.COLD
    assert found.prediction.bill.read_tokens > 0


def test_an_agent_is_not_its_own_sibling():
    """Where times are whole seconds, an answer seems to begin after the next request."""
    assert cause(body(ASKED), body(*NEXT, at_s=0)) == Cause.NEW_CONTENT


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_below_minimum():
    assert cause(body(ASKED), body(*NEXT), minimum_tokens=40) == Cause.BELOW_MINIMUM


def test_above_minimum():
    assert cause(body(ASKED), body(*NEXT), minimum_tokens=10) == Cause.NEW_CONTENT


def many(n_blocks):
    return body(ASKED_BEFORE, ANSWERED, user(*(text(f"Page {i}") for i in range(n_blocks)), marked("Read them")))


def test_look_back_overflow():
    """The entry lies 20 blocks before the breakpoint, which looks at itself and 19 more."""
    assert cause(body(ASKED), many(18)) == Cause.LOOK_BACK_OVERFLOW


def test_look_back_that_just_reaches():
    assert cause(body(ASKED), many(17)) == Cause.NEW_CONTENT


def test_breakpoint_missing_where_it_should_have_been_written():
    assert cause(body(ASKED_BEFORE), body(*NEXT)) == Cause.BREAKPOINT_MISSING


def test_breakpoint_missing_where_it_should_be_read():
    unmarked = body(ASKED_BEFORE, ANSWERED, user("Thanks"))
    assert cause(body(ASKED), unmarked) == Cause.BREAKPOINT_MISSING


def test_a_breakpoint_that_moved_back():
    first = body(user(text("How do I sort"), marked("a list of words")))
    moved = body(user(marked("How do I sort"), text("a list of words")), ANSWERED, user("Thanks"))
    assert cause(first, moved) == Cause.BREAKPOINT_MISSING


def test_automatic_caching_needs_no_breakpoint():
    automatic = {"cache_control": MARK}
    assert cause(body(ASKED_BEFORE, **automatic), body(ASKED_BEFORE, ANSWERED, user("Thanks"), **automatic)) == (
        Cause.NEW_CONTENT
    )


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_model_changed():
    assert cause(body(ASKED), body(*NEXT, model="claude-haiku-5-5")) == Cause.MODEL_CHANGED


def test_model_changed_explains_more_than_a_gap():
    assert cause(body(ASKED), body(*NEXT, model="claude-haiku-5-5", at_s=999)) == Cause.MODEL_CHANGED


def test_thinking_changed():
    on = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert cause(body(ASKED), body(*NEXT, **on)) == Cause.THINKING_CHANGED
    assert cause(body(ASKED, **on), body(*NEXT, **on)) == Cause.NEW_CONTENT


def test_tool_choice_changed():
    any_tool = {"tool_choice": {"type": "any"}}
    assert cause(body(ASKED), body(*NEXT, **any_tool)) == Cause.TOOL_CHOICE_CHANGED
    assert cause(body(ASKED, **any_tool), body(*NEXT, **any_tool)) == Cause.NEW_CONTENT


def test_settings_changed():
    assert cause(body(ASKED), body(*NEXT, speed="fast")) == Cause.SETTINGS_CHANGED
    assert cause(body(ASKED, speed="fast"), body(*NEXT, speed="fast")) == Cause.NEW_CONTENT


def test_thinking_spares_tools_and_system():
    system = [text("A long system prompt", cache_control=MARK)]
    thinking = {"thinking": {"type": "enabled"}}
    found = explain_bodies(body(ASKED, system=system), body(*NEXT, system=system, **thinking))[-1]
    assert found.loss.cause == Cause.THINKING_CHANGED
    assert found.prediction.bill.read_tokens > 0


# --- Tools ------------------------------------------------------------------------------------------------------------

READ, EDIT = tool("Read"), tool("Edit")


@pytest.mark.parametrize(
    ("tools", "expected", "place"),
    [
        ([READ, EDIT, tool("Bash")], Cause.TOOLS_ADDED, 2),
        ([tool("Bash"), READ, EDIT], Cause.TOOLS_ADDED, 0),
        ([READ], Cause.TOOLS_REMOVED, 1),
        ([], Cause.TOOLS_REMOVED, 0),
        ([EDIT, READ], Cause.TOOLS_REORDERED, 0),
        ([READ, tool("Edit", "does it better")], Cause.TOOL_DESCRIPTION_CHANGED, 1),
        ([READ, tool("Edit", schema={"type": "object", "required": []})], Cause.TOOL_SCHEMA_CHANGED, 1),
        ([READ, dict(reversed(EDIT.items()))], Cause.SERIALISATION_CHURN, 1),
        ([tool("Edit", "does it better"), READ], Cause.TOOL_DESCRIPTION_CHANGED, 0),
    ],
)  # fmt: skip
def test_tools(tools, expected, place):
    changed = body(*NEXT, tools=tools)
    assert cause(body(ASKED), changed) == expected
    assert first_difference(body(ASKED), changed) == (expected, "tools", place)


@pytest.mark.parametrize(
    "tools",
    [
        [READ, {**EDIT, "cache_control": MARK}],
        [READ, EDIT, {**tool("Later"), "defer_loading": True}],
    ],
    ids=["only a marker", "a deferred tool"],
)
def test_tools_decoys(tools):
    assert cause(body(ASKED), body(*NEXT, tools=tools)) == Cause.NEW_CONTENT


# --- System -----------------------------------------------------------------------------------------------------------

HEADER = "x-anthropic-billing-header: cc_version=2.1.{}; cc_entrypoint=cli; cch={};"
ENVIRONMENT = "You are in:\nWorking directory: {}\nToday's date: {}\n\ngitStatus: {}"


@pytest.mark.parametrize(
    ("was", "is_now", "expected"),
    [
        (HEADER.format(1, "00000"), HEADER.format(2, "00000"), Cause.CLIENT_VERSION_CHANGED),
        (ENVIRONMENT.format("/a", "May 1", "M x"), ENVIRONMENT.format("/a", "May 2", "M x"), Cause.DATE_CHANGED),
        (ENVIRONMENT.format("/a", "May 1", "M x"), ENVIRONMENT.format("/a", "May 1", "M y"), Cause.GIT_STATUS_CHANGED),
        (
            ENVIRONMENT.format("/a", "May 1", "M x"),
            ENVIRONMENT.format("/b", "May 1", "M x"),
            Cause.WORKING_DIRECTORY_CHANGED,
        ),
        (ENVIRONMENT.format("/a", "May 1", "M x"), ENVIRONMENT.format("/a", "May 2", "M y"), Cause.DATE_CHANGED),
        ("You help.", "You help a lot.", Cause.SYSTEM_CHANGED),
        (
            "Be brief. " + ENVIRONMENT.format("/a", "May 1", "M x"),
            "Be long. " + ENVIRONMENT.format("/a", "May 1", "M x"),
            Cause.SYSTEM_CHANGED,
        ),
    ],
)
def test_system(was, is_now, expected):
    before, after = (
        body(*messages, system=[text("First"), text(words)]) for messages, words in (([ASKED], was), (NEXT, is_now))
    )
    assert cause(before, after) == expected
    assert first_difference(before, after) == (expected, "system", 1)


def test_the_billing_headers_changing_values_change_nothing():
    before, after = (text(HEADER.format(1, value)) for value in ("0a1b2", "c3d4e"))
    assert cause(body(ASKED, system=[before]), body(*NEXT, system=[after])) == Cause.NEW_CONTENT


def test_a_system_block_more():
    added = [text("You help."), text("Much.")]
    assert first_difference(body(ASKED), body(*NEXT, system=added)) == (Cause.SYSTEM_CHANGED, "system", 1)
    assert cause(body(ASKED), body(*NEXT, system=added)) == Cause.SYSTEM_CHANGED


# --- Messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "is_now", "expected"),
    [
        (text("One"), text("Two"), Cause.HISTORY_REWRITTEN),
        (IMAGE, text("[image]"), Cause.IMAGE_REMOVED),
        (IMAGE, {**IMAGE, "source": {**IMAGE["source"], "data": png()[:-4] + "AAAA"}}, Cause.HISTORY_REWRITTEN),
        (result("A long file"), result("[Old tool result content cleared]"), Cause.TOOL_RESULT_CLEARED),
        (result("A long file"), result("Another file"), Cause.HISTORY_REWRITTEN),
        (result("A long file"), result([text("A long file")]), Cause.SERIALISATION_CHURN),
        (text(REMINDER), text("Two"), Cause.REMINDER_MOVED),
        (text("One"), text(REMINDER), Cause.REMINDER_MOVED),
        (result("A file"), result("A file\n\n" + REMINDER), Cause.REMINDER_MOVED),
        (result("A file\n\n" + REMINDER), result("A file"), Cause.REMINDER_MOVED),
        (text("One\n" + REMINDER), text("One"), Cause.REMINDER_MOVED),
        (result("A file"), result("B file\n\n" + REMINDER), Cause.HISTORY_REWRITTEN),
        (text("Today's date is May 1. Go"), text("Today's date is May 2. Go"), Cause.DATE_CHANGED),
    ],
)
def test_messages(was, is_now, expected):
    assert cause(history([was]), continued([is_now])) == expected
    assert first_difference(history([was]), continued([is_now])) == (expected, "messages", 0)


def test_keys_in_another_order():
    before = body(user("Read"), call(a=1, b=2), user(marked("Go on")))
    after = body(user("Read"), call(b=2, a=1), user("Go on"), ANSWERED, THANKED)
    assert cause(before, after) == Cause.SERIALISATION_CHURN
    assert first_difference(before, after) == (Cause.SERIALISATION_CHURN, "messages", 1)


def test_another_argument_is_no_churn():
    before = body(user("Read"), call(a=1, b=2), user(marked("Go on")))
    after = body(user("Read"), call(a=1, b=3), user("Go on"), ANSWERED, THANKED)
    assert cause(before, after) == Cause.HISTORY_REWRITTEN


def test_container_flip_only_where_the_cache_minds_it():
    before = body(user("Read"), ANSWERED, user(marked("Go on")))
    after = body(user(text("Read")), ANSWERED, user("Go on"), ANSWERED, THANKED)
    assert cause(before, after, flips_matter=True) == Cause.CONTAINER_FLIP
    assert cause(before, after) == Cause.NEW_CONTENT


def test_a_reminder_behind_the_breakpoint_is_no_loss():
    before = body(user(marked("Go"), text(REMINDER)))
    after = body(user(text("Go")), ANSWERED, THANKED)
    assert cause(before, after) == Cause.NEW_CONTENT


def test_history_taken_back():
    before = body(ASKED_BEFORE, ANSWERED, THANKED)
    after = body(ASKED_BEFORE, ANSWERED, user(marked("No")))
    assert cause(before, after) == Cause.HISTORY_REWRITTEN


def test_compaction():
    before = body(ASKED_BEFORE, ANSWERED, THANKED)
    after = body(user(marked("This is a summary of what was said so far")), compacted=True)
    assert cause(before, after) == Cause.COMPACTION


def test_a_compaction_that_left_the_history_as_it_was():
    assert cause(body(ASKED), body(*NEXT, compacted=True)) == Cause.NEW_CONTENT


def test_a_rewritten_history_after_a_gap_would_have_been_lost_anyway():
    after = continued([text("Two")]) | {"at_s": 301}
    assert cause(history([text("One")]), after) == Cause.LIFETIME_PASSED


def test_models_that_strip_thinking():
    thought = assistant({"type": "thinking", "thinking": "Sorting is"}, text("Call sorted on it"))
    turns = [
        body(ASKED),
        body(ASKED_BEFORE, thought, user(result("ok", cache_control=MARK))),
        body(ASKED_BEFORE, thought, user(result("ok")), ANSWERED, THANKED),
    ]
    strips = frozenset({"claude-opus-5-5"})
    assert cause(*turns) == Cause.NEW_CONTENT
    read = [found.prediction.bill.read_tokens for found in explain_bodies(*turns, strips=strips)]
    assert read[2] == read[1] > 0  # what stood before the thinking is all that is left


# --- By the bill ------------------------------------------------------------------------------------------------------


def test_unexplained():
    first = body(ASKED, bill=bill(0, 100))
    assert cause(first, body(*NEXT, bill=bill(0, 120))) == Cause.UNEXPLAINED


def test_a_bill_that_was_predicted_needs_no_explanation():
    first = body(ASKED, bill=bill(0, 100))
    assert cause(first, body(*NEXT, bill=bill(100, 20))) == Cause.NEW_CONTENT


def test_a_loss_by_the_bill_has_the_cause_that_was_predicted():
    first = body(ASKED, bill=bill(0, 100))
    found = explain_bodies(first, body(*NEXT, at_s=301, bill=bill(0, 120)))[-1]
    assert found.loss == (Cause.LIFETIME_PASSED, 20, 100)
