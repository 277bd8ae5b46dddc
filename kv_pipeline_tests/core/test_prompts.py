from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.core.prompts import ROOT, Breakpoint, PromptOptions, Request, Section, Sent, Settings
from kv_pipeline_tests.core.bodies import MARK, Bodies, assistant, body, marked, text, tool, user


def tree_of(*sent, **options):
    bodies = Bodies()
    requests = [bodies.request(one) for one in sent]
    return Sent(requests, bodies.segments, PromptOptions(**options)).place()


def kinds(tree, end):
    """Sections and places of a prompt's content blocks."""
    return [(tree.section[n].name.lower(), tree.item[n]) for n in reversed(list(tree.prefix(end))) if tree.block[n]]


words = st.text("ab", min_size=1, max_size=2)
messages = st.lists(st.lists(words.map(text), min_size=1, max_size=3).map(lambda blocks: user(*blocks)), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(messages, min_size=2, max_size=5))
def test_equal_prefixes_are_the_same_node(sent):
    tree, prompts = tree_of(*(body(*listed) for listed in sent))
    flat = [[block["text"] for message in listed for block in message["content"]] for listed in sent]
    starts = [
        [(i, j == 0) for i, message in enumerate(listed) for j in range(len(message["content"]))] for listed in sent
    ]
    for prompt, words, places in zip(prompts, flat, starts, strict=True):
        for other, other_words, other_places in zip(prompts, flat, starts, strict=True):
            paths = [list(zip(words, (s for _, s in places), strict=True)),
                     list(zip(other_words, (s for _, s in other_places), strict=True))]  # fmt: skip
            n_shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*paths, strict=False)))
            shared = tree.shared(prompt.end, other.end)
            assert sum(tree.section[n] is Section.MESSAGES for n in tree.prefix(shared)) == n_shared
            assert tree.is_prefix(shared, prompt.end) and tree.is_prefix(shared, other.end)


def test_a_prompt_is_tools_then_system_then_messages():
    tree, (prompt,) = tree_of(body(user("Hello"), assistant(text("a"), text("b")), user("c")))
    assert kinds(tree, prompt.end) == [
        ("tools", 0), ("tools", 1), ("system", 0), ("messages", 0), ("messages", 1), ("messages", 1), ("messages", 2),
    ]  # fmt: skip
    assert tree.n_tokens(prompt.end) == sum(tree.tokens(prompt.end))


def test_a_message_that_grew_shares_its_beginning():
    tree, (short, long) = tree_of(body(user(text("a"))), body(user(text("a"), text("b"))))
    assert tree.is_prefix(short.end, long.end)


def test_a_message_more_is_not_a_block_more():
    tree, (one, two) = tree_of(body(user(text("a"), text("b"))), body(user(text("a")), user(text("b"))))
    assert tree.shared(one.end, two.end) not in {one.end, two.end}


def test_roles_are_content():
    _tree, (one, two) = tree_of(body(user(text("a"))), body(assistant(text("a"))))
    assert one.end != two.end


def test_breakpoints_sit_where_they_were_set():
    sent = body(
        user(text("a"), marked("b"), text("c")),
        tools=[tool("A"), {**tool("B"), "cache_control": MARK}],
        system=[marked("one"), text("two")],
    )
    tree, (prompt,) = tree_of(sent)
    places = [(tree.section[m.node].name.lower(), tree.item[m.node], tree.depth[m.node]) for m in prompt.marks]
    assert [place[:2] for place in places] == [("tools", 1), ("system", 0), ("messages", 0)]
    assert tree.parent[prompt.end] == prompt.marks[-1].node
    assert [m.ttl for m in prompt.marks] == ["5m"] * 3


def test_breakpoints_that_point_nowhere_are_no_breakpoints():
    bodies = Bodies()
    request = bodies.request(body(user("a")))
    gone = (Breakpoint(Section.MESSAGES, 9, 0, "5m"), Breakpoint(Section.MESSAGES, 0, 0, "1h"))
    _, (prompt,) = Sent([request._replace(breakpoints=gone)], bodies.segments).place()
    assert [mark.ttl for mark in prompt.marks] == ["1h"]


def test_automatic_caching_marks_the_last_block_that_can_be_marked():
    thought = assistant(text("a"), {"type": "thinking", "thinking": "Hm"})
    tree, (prompt,) = tree_of(body(user("q"), thought, cache_control=MARK))
    (mark,) = prompt.marks
    assert mark.node == tree.parent[prompt.end]


def test_what_is_left_out_of_prompts():
    deferred = {**tool("Later"), "defer_loading": True}
    header = text("x-anthropic-billing-header: cc_version=1;")
    plain = body(user("a"), system=[marked("Help")])
    extra = body(user("a"), tools=[*plain["tools"], deferred], system=[header, marked("Help")])
    tree, (one, other) = tree_of(plain, extra, drops_headers=True)
    assert one == other
    tree, (one, other) = tree_of(plain, extra)
    assert tree.section[tree.shared(one.end, other.end)] is not Section.MESSAGES


def test_settings_start_what_they_concern_anew():
    sent = [body(user("a")), body(user("a"), tool_choice={"type": "any"}), body(user("a"), speed="fast"),
            body(user("a"), model="other")]  # fmt: skip
    tree, prompts = tree_of(*sent)

    def common(index):
        return kinds(tree, tree.shared(prompts[0].end, prompts[index].end))

    assert common(1) == [("tools", 0), ("tools", 1), ("system", 0)]
    assert common(2) == [("tools", 0), ("tools", 1)]
    assert tree.shared(prompts[0].end, prompts[3].end) == ROOT


def test_an_empty_request():
    request = Request(Settings("m"), None, None, (), (Breakpoint(None, 0, 0, "5m"),))
    tree, (prompt,) = Sent([request], {}).place()
    assert prompt.marks == ()
    assert tree.n_tokens(prompt.end) == 0
