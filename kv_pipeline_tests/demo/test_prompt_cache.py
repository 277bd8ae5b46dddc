from __future__ import annotations

import pytest

from kv_pipeline.demo.prompt_cache import (
    FRAMING_TOKENS,
    LOOK_BACK_POSITIONS,
    START,
    Position,
    Prompt,
    PromptCache,
    Usage,
    next_position,
)

MINUTE_MS = 60_000


def positions(*blocks: tuple[str, int]) -> list[Position]:
    last, made = START, []
    for text, tokens in blocks:
        last = next_position(last, text, tokens)
        made.append(last)
    return made


def ask(cache: PromptCache, prompt: Prompt, at_ms: int) -> Usage:
    return cache.settle(prompt, cache.hit(prompt, at_ms), at_ms, at_ms + 500, 10)


def prompt_of(*blocks: tuple[str, int], marks: dict[int, str], model: str = "big") -> Prompt:
    return Prompt(model, positions(*blocks), marks)


TOOLS, SYSTEM, ASK = ("tools", 2_000), ("system", 300), ("ask", 50)


def test_first_request_writes_up_to_its_last_breakpoint():
    usage = ask(PromptCache(), prompt_of(TOOLS, SYSTEM, ASK, marks={1: "5m"}), 0)
    assert usage == Usage(50 + FRAMING_TOKENS, 0, 2_300, 0, 10)


def test_next_turn_reads_what_was_written_and_writes_the_rest():
    cache = PromptCache()
    ask(cache, prompt_of(TOOLS, SYSTEM, ASK, marks={1: "5m", 2: "5m"}), 0)
    usage = ask(cache, prompt_of(TOOLS, SYSTEM, ASK, ("more", 70), marks={1: "5m", 3: "5m"}), 1_000)
    assert usage == Usage(FRAMING_TOKENS, 2_350, 70, 0, 10)


def test_entries_exist_only_at_breakpoints():
    cache = PromptCache()
    ask(cache, prompt_of(TOOLS, SYSTEM, ASK, marks={2: "5m"}), 0)
    usage = ask(cache, prompt_of(TOOLS, SYSTEM, ("other", 50), marks={2: "5m"}), 1_000)
    assert usage.read_tokens == 0


@pytest.mark.parametrize(("lifetime", "gap_ms", "is_read"), [
    ("5m", 5 * MINUTE_MS - 1, True),
    ("5m", 5 * MINUTE_MS, False),
    ("1h", 59 * MINUTE_MS, True),
    ("1h", 60 * MINUTE_MS, False),
])  # fmt: skip
def test_lifetime_counts_from_the_start_of_the_request(lifetime, gap_ms, is_read):
    cache, prompt = PromptCache(), prompt_of(TOOLS, marks={0: lifetime})
    ask(cache, prompt, 0)
    assert (ask(cache, prompt, gap_ms).read_tokens > 0) is is_read


def test_a_read_renews_the_entry():
    cache, prompt = PromptCache(), prompt_of(TOOLS, marks={0: "5m"})
    for at_ms in (0, 4 * MINUTE_MS):
        ask(cache, prompt, at_ms)
    assert ask(cache, prompt, 8 * MINUTE_MS).read_tokens == 2_000


def test_entry_is_unreadable_before_its_response_begins():
    cache, prompt = PromptCache(), prompt_of(TOOLS, marks={0: "5m"})
    ask(cache, prompt, 0)
    assert ask(cache, prompt, 499).read_tokens == 0


def test_short_prefixes_are_not_cached():
    cache, prompt = PromptCache(), prompt_of(("tools", 1_023), marks={0: "5m"})
    assert [ask(cache, prompt, at_ms).write_tokens for at_ms in (0, 1_000)] == [0, 0]


def test_models_do_not_share_entries():
    cache = PromptCache()
    ask(cache, prompt_of(TOOLS, marks={0: "5m"}), 0)
    assert ask(cache, prompt_of(TOOLS, marks={0: "5m"}, model="small"), 1_000).read_tokens == 0


@pytest.mark.parametrize(("added", "is_read"), [(LOOK_BACK_POSITIONS - 1, True), (LOOK_BACK_POSITIONS, False)])
def test_look_back_counts_the_breakpoint_itself(added, is_read):
    cache = PromptCache()
    ask(cache, prompt_of(TOOLS, marks={0: "5m"}), 0)
    more = [(f"block {number}", 10) for number in range(added)]
    assert (ask(cache, prompt_of(TOOLS, *more, marks={added: "5m"}), 1_000).read_tokens > 0) is is_read


def test_mixed_lifetimes_are_billed_by_the_longer_breakpoint_first():
    usage = ask(PromptCache(), prompt_of(TOOLS, SYSTEM, marks={0: "1h", 1: "5m"}), 0)
    assert (usage.write_1h_tokens, usage.write_5m_tokens) == (2_000, 300)
