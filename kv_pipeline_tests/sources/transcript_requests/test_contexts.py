"""What was sent for each answer, found by following records: compared with conversations that know it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.sources.transcript_requests.placement import marked_messages
from kv_pipeline_tests.sources.transcript_requests.script import (
    Json,
    Script,
    call,
    read_scripts,
    result,
    text,
    wire,
)


def sent(messages: list[Json]) -> list[Json]:
    """Messages as a client of 2.1 sends them: a breakpoint on the last."""
    last = len(messages) - 1
    return [wire(message, is_marked=index == last) for index, message in enumerate(messages)]


def user(*blocks: Json) -> Json:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Json) -> Json:
    return {"role": "assistant", "content": list(blocks)}


def test_a_prompt_and_an_answer(tmp_path):
    script = Script()
    script.user("hello")
    script.answer("m1", [text("hi")])
    read = read_scripts(tmp_path, script)
    assert read.messages("m1") == [user(text("hello"))]
    row = read.row("m1")
    assert row["exactness"] == "approximate"
    assert row["recorded_by"] == "transcripts"
    assert (row["input_tokens"], row["cache_write_5m_tokens"], row["output_tokens"]) == (3, 997, 50)
    assert (row["stop_reason"], row["output_types"], row["outcome"]) == ("end_turn", ["text"], "ok")
    assert (row["request_id"], row["session_id"], row["model"]) == ("req_m1", "s1", "claude-x")
    assert (str(row["requested_at_utc"]), row["api_time_s"]) == ("2026-03-02 08:00:01+00:00", 1.0)
    assert read.reasons == []


def test_results_of_parallel_calls_beside_the_path(tmp_path):
    """The second result is the parent of what follows; the first hangs on its own call."""
    script = Script()
    script.user("go")
    first, second, third = script.answer("m1", [text("reading"), call("a"), call("b")])
    script.user([result("b")], parent=third)
    script.user([result("a")], parent=second)
    script.answer("m2", [text("done")])
    assert first != second
    read = read_scripts(tmp_path, script)
    asked = [user(text("go")), assistant(text("reading"), call("a"), call("b")), user(result("b"), result("a"))]
    assert read.messages("m2") == sent(asked)


def test_blocks_that_are_written_while_results_come_in(tmp_path):
    """Clients run calls while the answer is still streaming."""
    script = Script()
    script.user("go")
    (first,) = script.answer("m1", [call("a")])
    script.user([result("a")], parent=first)
    (second,) = script.answer("m1", [call("b")], parent=first)
    script.user([result("b")], parent=second)
    script.answer("m2", [text("done")])
    asked = [user(text("go")), assistant(call("a"), call("b")), user(result("a"), result("b"))]
    assert read_scripts(tmp_path, script).messages("m2") == sent(asked)


def test_attachments_become_reminders_and_a_system_message(tmp_path):
    script = Script()
    script.user("go")
    script.attachment("<system-reminder>\nA place.\n</system-reminder>", "system")
    script.attachment("<system-reminder>\nRead this.\n</system-reminder>", "user")
    script.attachment("<system-reminder>\nA day.\n</system-reminder>", "system")
    script.answer("m1", [call("a")])
    script.user([result("a")])
    script.attachment("A note.", "user")
    script.answer("m2", [text("done")])
    read = read_scripts(tmp_path, script)
    reminder = text("<system-reminder>\nRead this.\n</system-reminder>")
    opening = [user(reminder, text("go")), {"role": "system", "content": [text("A place.\n\nA day.")]}]
    assert read.messages("m1") == sent(opening)
    assert read.messages("m2") == sent([*opening, assistant(call("a")), user(result("a"), text("A note."))])


def test_a_compaction_begins_a_new_context(tmp_path):
    script = Script()
    before = script.user("go")
    script.answer("m1", [text("old")])
    script.add("system", subtype="compact_boundary", parent=None, logicalParentUuid=before)
    script.user("The story so far.", isCompactSummary=True)
    script.answer("m2", [text("new")])
    assert read_scripts(tmp_path, script).messages("m2") == [user(text("The story so far."))]


def test_a_boundary_with_a_parent_begins_a_new_context_too(tmp_path):
    script = Script()
    script.user("go")
    script.answer("m1", [text("old")])
    script.add("system", subtype="compact_boundary")
    script.user("The story so far.")
    script.answer("m2", [text("new")])
    assert read_scripts(tmp_path, script).messages("m2") == [user(text("The story so far."))]


def test_the_clients_own_words_are_no_answers_and_were_not_sent(tmp_path):
    script = Script()
    script.user("go")
    script.add("assistant", message={"id": "x", "model": "<synthetic>", "content": [text("No.")]})
    script.add("assistant", isApiErrorMessage=True, message={"id": "y", "model": "m", "content": [text("529")]})
    script.user("again")
    script.answer("m1", [text("hi")])
    read = read_scripts(tmp_path, script)
    assert read.rows["message_id"].to_list() == ["m1"]
    assert read.messages("m1") == [user(text("go"), text("again"))]


def test_going_back_leaves_the_abandoned_branch_out(tmp_path):
    script = Script()
    first = script.user("go")
    script.answer("m1", [text("left")])
    script.user("further")
    script.answer("m2", [text("far")])
    script.user("instead", parent=first)
    script.answer("m3", [text("right")])
    assert read_scripts(tmp_path, script).messages("m3") == [user(text("go"), text("instead"))]


def test_a_resumed_session_repeats_its_history_in_the_file(tmp_path):
    script = Script()
    script.user("go")
    (a,) = script.answer("m1", [call("a")])
    script.user([result("a")], parent=a)
    script.answer("m2", [text("done")])
    history = len(script.records)
    for record in [dict(r) for r in script.records[:history]]:
        parent = record["parentUuid"]
        script.records.append({**record, "uuid": "copy-" + record["uuid"], "parentUuid": parent and "copy-" + parent})
    script.last = script.records[-1]["uuid"]
    script.user("more")
    script.answer("m3", [text("yes")])
    read = read_scripts(tmp_path, script)
    asked = [user(text("go")), assistant(call("a")), user(result("a")), assistant(text("done")), user(text("more"))]
    assert read.messages("m3") == sent(asked)
    assert read.rows["message_id"].to_list() == ["m1", "m2", "m3"]


def test_a_fork_continues_its_parents_thread(tmp_path):
    main = Script()
    main.user("go")
    before = main.last
    uses = main.answer("m1", [text("dividing"), call("f"), call("g")])
    fork = Script(agent_id="fork")
    fork.records.append({"type": "fork-context-ref", "parentSessionId": "s1", "parentLastUuid": before})
    fork.answer("m1", [call("f")], parent=None)
    fork.user([result("f", "that fork is you"), text("your part")])
    fork.answer("m2", [text("done")])
    main.user([result("f")], parent=uses[1])
    main.user([result("g")], parent=uses[2])
    main.answer("m3", [text("all done")])
    read = read_scripts(tmp_path, main, fork)
    given = user(result("f", "that fork is you"), text("your part"))
    assert read.messages("m2") == sent([user(text("go")), assistant(call("f")), given])
    whole = assistant(text("dividing"), call("f"), call("g"))
    assert read.messages("m3") == sent([user(text("go")), whole, user(result("f"), result("g"))])
    assert read.rows["message_id"].is_unique().all()


def test_a_fork_of_a_thread_that_is_gone(tmp_path):
    fork = Script(agent_id="fork")
    fork.records.append({"type": "fork-context-ref", "parentSessionId": "s1", "parentLastUuid": "gone"})
    fork.user("your part", parent=None)
    fork.answer("m2", [text("done")])
    read = read_scripts(tmp_path, fork)
    assert read.messages("m2") == [user(text("your part"))]
    assert read.reasons == [("agent-fork.jsonl", 1, "unknown_parent")]


def test_a_parent_that_is_missing_is_the_line_before(tmp_path):
    script = Script()
    script.user("go")
    script.answer("m1", [text("hi")])
    script.user("more", parent="never written")
    script.answer("m2", [text("yes")])
    read = read_scripts(tmp_path, script)
    assert read.messages("m2") == sent([user(text("go")), assistant(text("hi")), user(text("more"))])
    assert read.reasons == [("s1.jsonl", 3, "unknown_parent")]


def test_clients_before_2_1_mark_two_messages(tmp_path):
    script = Script(version="2.0.30")
    script.user("go")
    script.answer("m1", [text("hi")])
    script.user("more")
    script.answer("m2", [text("yes")])
    marks = read_scripts(tmp_path, script).row("m2")["breakpoints"]
    assert [(m["section"], m["item_index"], m["block_index"]) for m in marks] == [
        ("system", None, 0), ("messages", 1, 0), ("messages", 2, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(("version", "n"), [("2.1.0", 1), ("3.0.1", 1), ("odd", 1), ("", 1), ("2.0.99", 2), ("1.1", 2)])
def test_number_of_marked_messages(version, n):
    assert marked_messages(version) == n


def test_thinking_carries_no_breakpoint(tmp_path):
    script = Script(version="2.0.30")
    script.user("go")
    script.answer("m1", [{"type": "thinking", "thinking": "hm", "signature": "s"}])
    script.user("more")
    script.answer("m2", [text("yes")])
    marks = read_scripts(tmp_path, script).row("m2")["breakpoints"]
    assert [m["item_index"] for m in marks] == [None, 2]


# --- Against conversations that know what they sent -------------------------------------------------------------------


TURNS = st.lists(
    st.tuples(st.integers(0, 3), st.permutations(range(3)), st.booleans(), st.integers(0, 6)), min_size=1, max_size=8
)


def play(script: Script, turns: list[Any]) -> dict[str, list[Json]]:
    """A conversation with parallel calls, results in any order, reminders, steps back; what each answer was given."""
    truth: dict[str, list[Json]] = {}
    points: list[tuple[str | None, list[Json]]] = [(None, [])]
    tip, messages = points[0]
    for number, (n_calls, order, has_reminder, back) in enumerate(turns):
        if back < len(points) and back % 3 == 2:
            tip, messages = points[back]  # the user went back
        prompt = [text(f"prompt {number}")]
        tip = script.user(prompt[0]["text"], parent=tip)
        if has_reminder:
            tip = script.attachment(f"reminder {number}", "user", parent=tip)
            prompt = [text(f"reminder {number}"), *prompt]
        messages = [*messages, user(*prompt)]
        truth[f"m{number}"] = messages
        calls = [call(f"u{number}-{index}") for index in range(n_calls)]
        said = [text(f"answer {number}"), *calls]
        uuids = script.answer(f"m{number}", said, parent=tip)
        tip, messages = uuids[-1], [*messages, assistant(*said)]
        came = [index for index in order if index < n_calls]
        for index in came:
            tip = script.user([result(f"u{number}-{index}")], parent=uuids[1 + index])
        if came:
            messages = [*messages, user(*(result(f"u{number}-{index}") for index in came))]
            truth[f"m{number}r"] = messages
            tip = script.answer(f"m{number}r", [text(f"seen {number}")], parent=tip)[-1]
            messages = [*messages, assistant(text(f"seen {number}"))]
        points.append((tip, messages))
    return truth


@given(turns=TURNS)
@settings(max_examples=60, deadline=None)
def test_every_answer_was_given_what_its_conversation_says(turns):
    script = Script()
    truth = play(script, turns)
    with tempfile.TemporaryDirectory() as folder:
        read = read_scripts(Path(folder), script)
    assert {message_id: read.messages(message_id) for message_id in truth} == {
        message_id: sent(messages) for message_id, messages in truth.items()
    }
    assert read.reasons == []
