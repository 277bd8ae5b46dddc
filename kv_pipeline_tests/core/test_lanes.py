from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.lanes import find_lanes, prefix_hashes


def lanes(*requests: str, kinds: str = "") -> list[int | None]:
    """Lanes of requests whose messages are letters."""
    arrays = [np.array([ord(letter) for letter in messages], dtype=np.uint64) for messages in requests]
    return find_lanes(kinds or "k" * len(requests), arrays)


def slow_lanes(requests: list[str], kinds: list[str]) -> list[int | None]:
    """The rules, word by word: every request is compared with all before it."""
    placed: list[tuple[str, str, int]] = []
    found: list[int | None] = []
    for kind, messages in zip(kinds, requests, strict=True):
        before = [(other, lane) for other_kind, other, lane in placed if other_kind == kind]
        if messages and messages in [other for other, _ in before]:
            found.append(None)
            continue
        longest = max((in_common(messages, other) for other, _ in before), default=0)
        nearest = [(other, lane) for other, lane in before if longest and in_common(messages, other) == longest]
        same = [one for one in nearest if one[0][:longest] == messages[:longest]]
        order = [latest for some in (same, nearest) for latest in (
            [one for one in some if len(one[0]) == longest][-1:], [one for one in some if len(one[0]) > longest][-1:]
        )]  # fmt: skip
        tips = {lane: other for _, other, lane in placed}
        fit = [lane for some in order for other, lane in some if tips[lane] == other and len(other) < len(messages)]
        lane = fit[0] if fit else len(tips)
        placed.append((kind, messages, lane))
        found.append(lane)
    return found


def in_common(messages: str, other: str) -> int:
    """Messages in common with another request, the first included, whether it is the same or not.

    These must be all of its messages but perhaps the last, and there must be one that is the same.
    """
    for n in (len(other), len(other) - 1):
        is_same = messages[:n] == other[:n] if n < 2 else messages[1:n] == other[1:n]
        if 0 < n <= len(messages) and is_same:
            return n
    return 0


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        pytest.param(["a", "abc", "abcde"], [0, 0, 0], id="a loop"),
        pytest.param(["a", "x", "abc", "xyz", "abcde"], [0, 1, 0, 1, 0], id="two at a time"),
        pytest.param(["ab", "aBcd", "aBcDef"], [0, 0, 0], id="the last message is rewritten"),
        pytest.param(["a", "Abc"], [0, 1], id="a single message is not"),
        pytest.param(["abc", "Abcde", "abcdefg"], [0, 0, 0], id="the first message is rewritten, and back"),
        pytest.param(["abc", "xbc", "abcde", "xbcfg"], [0, 1, 0, 1], id="who has the same first message is nearer"),
        pytest.param(["a", "xbc", "abcde"], [0, 1, 1], id="what has more in common is nearer"),
        pytest.param(["abc", "abcde", "abcde", "abcdefg"], [0, 0, None, 0], id="a retry"),
        pytest.param(["a", "a"], [0, None], id="the same opening twice"),
        pytest.param(["abc", "abcde", "abcXY", "abcdefg"], [0, 0, 1, 0], id="a branch"),
        pytest.param(["abc", "abx"], [0, 1], id="as long as the one before"),
        pytest.param(["abc", "abcd", "abcXY"], [0, 0, 0], id="the tip is nearer than what it grew from"),
        pytest.param(["abc", "ab", "abxy"], [0, 1, 1], id="who is whole in it is nearer"),
        pytest.param(["", "", "a"], [0, 1, 2], id="no messages"),
    ],
)
def test_lanes(requests, expected):
    assert lanes(*requests) == expected


def test_lanes_do_not_mix_kinds():
    assert lanes("a", "abc", "abc", "abcde", kinds="xyxy") == [0, 1, 0, 1]


@st.composite
def conversations(draw):
    """Requests that mostly continue, rewrite, branch from or repeat an earlier one."""
    requests = [draw(st.text("ab", max_size=3))]
    for _ in range(draw(st.integers(0, 14))):
        base = draw(st.sampled_from(requests))
        kept = draw(st.integers(max(0, len(base) - 3), len(base)))
        requests.append(base[:kept] + draw(st.text("abc", max_size=3)))
    return requests, [draw(st.sampled_from("xy")) for _ in requests]


@given(conversations())
def test_lanes_are_those_of_the_rules(conversation):
    requests, kinds = conversation
    assert lanes(*requests, kinds="".join(kinds)) == slow_lanes(requests, kinds)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_a_beginning_has_the_same_hash_in_any_list(first, then):
    ids = np.array(first + then, dtype=np.uint64)
    assert prefix_hashes(ids)[: len(first)].tolist() == prefix_hashes(ids[: len(first)]).tolist()


@given(st.sets(st.lists(st.integers(0, 2), max_size=5).map(tuple), min_size=2))
def test_other_beginnings_have_other_hashes(lists):
    hashes = [int(prefix_hashes(np.array(ids, dtype=np.uint64))[-1]) if ids else 0 for ids in lists]
    assert len(set(hashes)) == len(lists)
