from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.lanes import Aside, Lanes, Messages, find_lanes, n_equal, prefix_hashes, without_first

RETRY, SIDE = Aside.RETRY, Aside.SIDE
LONG = 97


def messages() -> Messages:
    """Messages are characters: capitals are answers, `!` tells a fork, `?` asks for a summary, digits answer calls.

    `1` and `2` answer the same call, the second is longer; a dot is short.
    """
    numbers = np.arange(128)
    size = np.full(128, LONG)
    size[ord(".")], size[ord("2")] = 1, LONG + 1
    results = np.full(128, -1)
    results[[ord("1"), ord("2")]] = 1
    return Messages(
        identity=numbers.astype(np.uint64),
        size=size,
        is_answer=(numbers >= ord("A")) & (numbers <= ord("Z")),
        is_fork=numbers == ord("!"),
        results=results,
        asks_for_summary=numbers == ord("?"),
    )


def found(*requests: str, kinds: str = "", min_shared: float = 0.97) -> Lanes:
    arrays = [np.array([ord(letter) for letter in request], dtype=np.uint32) for request in requests]
    return find_lanes(["s"] * len(requests), kinds or "k" * len(requests), arrays, messages(), min_shared)


def lanes(*requests: str, **options) -> list[int | Aside]:
    """Lane of each request, or why it is in none."""
    result = found(*requests, **options)
    lane_of = {place: number for number, lane in enumerate(result.lanes) for place in lane.requests}
    return [lane_of[place] if place in lane_of else result.asides[place] for place in range(len(requests))]


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        pytest.param(["a", "aBc", "aBcDe"], [0, 0, 0], id="a loop"),
        pytest.param(["a", "x", "aBc", "xYz", "aBcDe"], [0, 1, 0, 1, 0], id="two at a time"),
        pytest.param(["aBc", "aBCde", "aBCdefg"], [0, 0, 0], id="the last message is rewritten"),
        pytest.param(["aBcDe.", "aBcDefg"], [0, 0], id="what is short and last is rewritten"),
        pytest.param(["a", "xBc"], [0, 1], id="a single message is not"),
        pytest.param(["aBc", "xBcDe", "aBcDefg"], [0, 0, 0], id="the first message is rewritten, and back"),
        pytest.param(["aBc", "xBc", "aBcDe", "xBcFg"], [0, 1, 0, 1], id="who has the same first message is nearer"),
        pytest.param(["abc", "xbcde"], [0, 1], id="without an answer in common the first message counts"),
        pytest.param(["aBc", "aBcDe", "aBcDe", "aBcDefg"], [0, 0, RETRY, 0], id="a retry"),
        pytest.param(["a", "a", "aBc", "aDe", "aBcFg"], [0, 1, 0, 1, 0], id="the same opening twice: two agents"),
        pytest.param(["aBc", "aBcDe", "aBcXy", "aBcDefg"], [0, 0, 1, 0], id="a branch"),
        pytest.param(["aBc", "aBx"], [0, 1], id="as long as the one before"),
        pytest.param(["aBc", "aBcD!", "aBcDe", "aBcD!Fg"], [0, 1, 0, 1], id="a fork, and its parent's next turn"),
        pytest.param(["aB1", "aB2", "aB1Cd"], [0, SIDE, 0], id="a question behind the same tool results"),
        pytest.param(["aB2", "aB1"], [0, 1], id="less behind them is none"),
        pytest.param(["aBc", "aBcD?"], [0, SIDE], id="a request for a summary"),
        pytest.param(["", "", "a"], [0, 1, 2], id="no messages"),
    ],
)
def test_lanes(requests, expected):
    assert lanes(*requests) == expected


def test_lanes_do_not_mix_kinds():
    assert lanes("a", "aBc", "aBc", "aBcDe", kinds="xyxy") == [0, 1, 0, 1]


def test_the_share_that_must_be_in_common():
    requests = ("aBcDe", "aBcDXyz")
    assert lanes("aBcDefgh", "aBcDeXyzUvw", min_shared=0.97) == [0, 1]
    assert lanes("aBcDefgh", "aBcDeXyzUvw", min_shared=0.6) == [0, 0]
    assert lanes(*requests) == [0, 0]  # all but the last message


@pytest.mark.parametrize(
    ("requests", "kinds", "derived_from", "n_shared"),
    [
        pytest.param(["aBcDe", "aBcXy"], "kk", 0, 3, id="a branch"),
        pytest.param(["aBcDe", "sDz"], "kk", 0, 0, id="a compaction that keeps an answer"),
        pytest.param(["aBc", "aBcDe"], "kl", 0, 3, id="another model"),
        pytest.param(["aBc", "aYc"], "kk", None, 0, id="the same opening is nobody's"),
    ],
)
def test_derived_lanes(requests, kinds, derived_from, n_shared):
    lane = found(*requests, kinds=kinds).lanes[1]
    assert (lane.derived_from, lane.n_shared) == (derived_from, n_shared)


def test_lanes_of_other_sessions_are_nobodys_origin():
    arrays = [np.array([ord(letter) for letter in request], dtype=np.uint32) for request in ("aBcDe", "aBcXy")]
    assert find_lanes("st", "kk", arrays, messages()).lanes[1].derived_from is None


def slow_lanes(requests: list[str], kinds: list[str], min_shared: float) -> list[int | Aside]:
    """The rules, word by word: every request is compared with all before it."""
    size, is_answer = messages().size, str.isupper
    placed: list[tuple[str, str, int]] = []
    result: list[int | Aside] = []
    for kind, request in zip(kinds, requests, strict=True):
        before = [(other, lane) for other_kind, other, lane in placed if other_kind == kind]
        if request in [other for other, _ in before] and any(map(is_answer, request)):
            result.append(RETRY)
            continue
        tips = {lane: other for _, other, lane in placed}
        best: tuple[int, bool, int] | None = None
        for other, lane in before:
            if tips[lane] != other or not other or len(other) >= len(request):
                continue
            total = sum(size[ord(m)] for m in other)
            reached = next(
                n for n in range(1, len(other) + 1) if sum(size[ord(m)] for m in other[:n]) >= min_shared * total
            )
            for n in {reached, max(1, len(other) - 1) if len(other) > 2 else len(other)}:
                is_exact = request[:n] == other[:n]
                is_almost = n > 1 and request[1:n] == other[1:n] and any(map(is_answer, other[:n]))
                if is_exact or is_almost:
                    best = max(best or (0, False, 0), (n, is_exact, -lane))
        lane = -best[2] if best else len(tips)
        placed.append((kind, request, lane))
        result.append(lane)
    return result


@st.composite
def conversations(draw):
    """Requests that mostly continue, rewrite, branch from or repeat an earlier one."""
    requests = [draw(st.text("aB.", max_size=3))]
    for _ in range(draw(st.integers(0, 14))):
        base = draw(st.sampled_from(requests))
        kept = draw(st.integers(max(0, len(base) - 3), len(base)))
        first = draw(st.sampled_from([base[:1], "x"]))
        requests.append((first + base[1:kept] if kept else "") + draw(st.text("aBC.", max_size=3)))
    return requests, [draw(st.sampled_from("xy")) for _ in requests]


@given(conversations(), st.sampled_from([0.5, 0.97, 1.0]))
def test_lanes_are_those_of_the_rules(conversation, min_shared):
    requests, kinds = conversation
    assert lanes(*requests, kinds="".join(kinds), min_shared=min_shared) == slow_lanes(requests, kinds, min_shared)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_a_beginning_has_the_same_hash_in_any_list(first, then):
    ids = np.array(first + then, dtype=np.uint64)
    assert prefix_hashes(ids)[: len(first)].tolist() == prefix_hashes(ids[: len(first)]).tolist()


@given(st.sets(st.lists(st.integers(0, 2), max_size=5).map(tuple), min_size=2))
def test_other_beginnings_have_other_hashes(lists):
    hashes = [int(prefix_hashes(np.array(ids, dtype=np.uint64))[-1]) if ids else 0 for ids in lists]
    assert len(set(hashes)) == len(lists)


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_common_beginnings(left, right):
    hashes = [prefix_hashes(np.array([ord(c) for c in text], dtype=np.uint64)) for text in (left, right)]
    common = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    assert n_equal(*hashes) == common
    if left and right:
        assert (n_equal(*map(without_first, hashes)) >= len(right)) == (
            left[1 : len(right)] == right[1:] and len(left) >= len(right)
        )
