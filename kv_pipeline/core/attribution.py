"""Why a request read less than its predecessor had left in the cache: one cause a request, in tokens.

A request's prompt is what it read, what it lost and what is new. Lost is what its predecessor in the same agent had in
the cache and it did not read; new is what lies behind. Causes are looked for in this order: another model, a
compaction, an entry that was dead, not yet readable or never written, changed content, an entry out of reach.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kv_pipeline.core.api_model import ApiCache, Prediction, Use
from kv_pipeline.core.causes import Cause
from kv_pipeline.core.divergence import Divergence, diverges
from kv_pipeline.core.lengths import Length, LengthBook
from kv_pipeline.core.prompts import ROOT, PromptTree, Section, Settings

_UNCERTAIN_SHARE, _UNCERTAIN_TOKENS = 0.02, 64
"""A billed read that falls short of an estimated length by this much is no loss."""
_FIRST_IS_ENOUGH: Final = frozenset({Cause.MODEL_CHANGED, Cause.COMPACTION})
"""Divergences that explain a loss whatever became of the entry."""


class Turn(NamedTuple):
    """A request in its agent.

    Attributes:
        settings: Its settings.
        use: The request as the API sees it.
        is_after_compaction: Whether the client compacted the history just before.
        predecessor: The agent's request before, None for its first.
    """

    settings: Settings
    use: Use
    is_after_compaction: bool
    predecessor: Turn | None


class Situation(NamedTuple):
    """What the cache held for a request when it came.

    Attributes:
        target: Node up to which the request could have read, had nothing gone wrong; ROOT for nothing.
        target_length: Its length.
        divergence: First difference from the predecessor within `target`.
        cause: What keeps the request from reading `target`; None if nothing does.
    """

    target: int
    target_length: Length
    divergence: Divergence | None
    cause: Cause | None


class Loss(NamedTuple):
    """A request's tokens that were not read.

    Attributes:
        cause: Why some were lost.
        new_tokens: Those that nobody could have read.
        lost_tokens: Those that the predecessor had in the cache.
    """

    cause: Cause
    new_tokens: int
    lost_tokens: int


class Examiner:
    """Looks at the cache before a request uses it.

    Args:
        tree: The prompts.
        cache: The cache, as it is when the request comes.
        lengths: What is known of prefixes' lengths.
    """

    def __init__(self, tree: PromptTree, cache: ApiCache, lengths: LengthBook) -> None:
        self._tree = tree
        self._cache = cache
        self._lengths = lengths

    def examine(self, turn: Turn) -> Situation:
        """What a request could read, and what keeps it from that."""
        if turn.predecessor is None:
            return self._first(turn)
        before = turn.predecessor
        target = self._left(before.use)
        divergence = diverges(
            self._tree,
            (before.settings, target),
            (turn.settings, turn.use.prompt.end),
            is_after_compaction=turn.is_after_compaction,
        )
        length = self._lengths.of(target, before.use.model)
        is_marked = any(mark.node == target for mark in before.use.prompt.marks)
        cause = self._cause(turn.use, target, length, divergence, is_marked=is_marked)
        return Situation(target, length, divergence, cause)

    def _first(self, turn: Turn) -> Situation:
        """An agent's first request is cold, unless a sibling is just writing what it could read."""
        use = turn.use
        for node in self._tree.prefix(use.prompt.end):
            entry = self._cache.entry(use.owner, node)
            if entry is not None and not entry.is_readable(use):
                return Situation(node, self._lengths.of(node, use.model), None, Cause.SIBLING_IN_FLIGHT)
        return Situation(ROOT, Length(0, is_billed=True), None, Cause.COLD)

    def _left(self, use: Use) -> int:
        """What a request should have left in the cache: up to its last breakpoint, or all if messages have none."""
        marks = use.prompt.marks
        if marks and self._tree.section[marks[-1].node] is Section.MESSAGES:
            return marks[-1].node
        return use.prompt.end

    def _cause(
        self, use: Use, target: int, length: Length, divergence: Divergence | None, *, is_marked: bool
    ) -> Cause | None:
        if divergence is not None and divergence.cause in _FIRST_IS_ENOUGH:
            return divergence.cause
        entry = self._cache.entry(use.owner, target)
        if entry is None:
            if length.tokens < use.minimum_tokens:
                return Cause.BELOW_MINIMUM
            return Cause.UNEXPLAINED if is_marked else Cause.BREAKPOINT_MISSING
        if not entry.is_alive(use.started_s):
            return Cause.LIFETIME_PASSED
        if not entry.is_readable(use):
            return Cause.SIBLING_IN_FLIGHT
        return self._out_of_reach(use, target) if divergence is None else divergence.cause

    def _out_of_reach(self, use: Use, target: int) -> Cause | None:
        if target in self._cache.looked_at(use.prompt, use.rules):
            return None
        depth = self._tree.depth
        marks = use.prompt.marks[: use.rules.max_breakpoints]
        is_behind = any(depth[mark.node] >= depth[target] for mark in marks)
        return Cause.LOOK_BACK_OVERFLOW if is_behind else Cause.BREAKPOINT_MISSING


def loss_of(situation: Situation, prediction: Prediction, use: Use) -> Loss:
    """What a request lost, by the bill, or by the prediction where there is none."""
    bill = use.bill or prediction.bill
    reachable = min(situation.target_length.tokens, bill.prompt_tokens)
    lost = reachable - bill.read_tokens
    if situation.cause is Cause.COLD or lost <= _uncertain_tokens(situation.target_length, use):
        cause = Cause.COLD if situation.cause is Cause.COLD else Cause.NEW_CONTENT
        return Loss(cause, bill.prompt_tokens - bill.read_tokens, 0)
    expected = reachable - prediction.bill.read_tokens
    is_explained = situation.cause is not None and expected * 2 >= lost
    cause = situation.cause if situation.cause is not None and is_explained else Cause.UNEXPLAINED
    return Loss(cause, bill.prompt_tokens - reachable, lost)


def _uncertain_tokens(length: Length, use: Use) -> float:
    if use.bill is None or length.is_billed:
        return 0
    return max(_UNCERTAIN_TOKENS, _UNCERTAIN_SHARE * length.tokens)
