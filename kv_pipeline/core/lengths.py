"""How many tokens the API counts in a prefix: known where one was billed, otherwise estimated.

cl100k_base is not the API's tokenizer, and it is off by another factor for tools than for messages. What the API read
or wrote up to a breakpoint is that prefix's exact length, and every later request that reads it is billed the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from kv_pipeline.core.prompts import ROOT, PromptTree

TYPICAL_RATIO: Final = 1.12
"""API tokens per cl100k_base token of models that no bill was seen of.

Source: cl100k_base counts 7 to 14 % less than models of 2025 were billed.
"""
_PRIOR_WEIGHT: Final = 0.05
"""How much a section's ratio is held to the model's overall one, in bills of average size."""


class Ratios(NamedTuple):
    """What bills of one model say of its tokenizer.

    Attributes:
        tools: API tokens per counted token of tools.
        system: Of the system prompt.
        messages: Of messages.
        overhead_tokens: Tokens that every prompt has in front, beyond its content.
        framing_tokens: Uncached tokens of requests whose last block carries a breakpoint: what frames the answer.
    """

    tools: float
    system: float
    messages: float
    overhead_tokens: float
    framing_tokens: int

    def tokens(self, counted: tuple[int, int, int]) -> float:
        """API tokens of a prefix, without the overhead."""
        tools, system, messages = counted
        return self.tools * tools + self.system * system + self.messages * messages


TYPICAL: Final = Ratios(TYPICAL_RATIO, TYPICAL_RATIO, TYPICAL_RATIO, 0.0, 0)


def learn_ratios(bills: Iterable[tuple[tuple[int, int, int], int]], framings: Sequence[int] = ()) -> Ratios:
    """Fit one model's ratios to its bills by least squares; where bills say little, a section keeps the overall one.

    Args:
        bills: Per request the counted tokens of its sections, and the billed tokens of its prompt.
        framings: Uncached tokens of each request whose last block carries a breakpoint.
    """
    rows = [(counted, billed) for counted, billed in bills if sum(counted) and billed]
    if not rows:
        return TYPICAL
    counted = np.array([row[0] for row in rows], dtype=float)
    billed = np.array([row[1] for row in rows], dtype=float)
    overall = float(billed.sum() / counted.sum())
    scale = np.sqrt(np.mean(billed**2))
    # The unknowns are deviations from the overall ratio and the overhead in thousandths of a prompt.
    features = np.hstack([counted / scale, np.full((len(rows), 1), 1e-3)])
    target = (billed - overall * counted.sum(axis=1)) / scale
    prior = np.sqrt(_PRIOR_WEIGHT) * np.eye(4)
    solution = np.linalg.lstsq(np.vstack([features, prior]), np.concatenate([target, np.zeros(4)]), rcond=None)[0]
    tools, system, messages = (max(0.1, overall + float(deviation)) for deviation in solution[:3])
    framing_tokens = int(np.median(framings)) if framings else 0
    return Ratios(tools, system, messages, float(solution[3]) * 1e-3 * float(scale), framing_tokens)


class Length(NamedTuple):
    """Tokens of a prefix, and whether they are known from a bill."""

    tokens: int
    is_billed: bool


class LengthBook:
    """What is known of prefixes' lengths so far.

    Args:
        tree: The prompts; a node belongs to one model.
        ratios: Per model.
    """

    def __init__(self, tree: PromptTree, ratios: Mapping[str, Ratios]) -> None:
        self._tree = tree
        self._ratios = ratios
        self._billed: dict[int, int] = {}
        self._longer: dict[int, int] = {}

    def of(self, node: int, model: str) -> Length:
        """Length of a prefix."""
        if node == ROOT:
            return Length(0, is_billed=True)
        billed = self._billed.get(node)
        if billed is not None:
            return Length(billed, is_billed=True)
        return Length(self._estimate(node, self._ratios.get(model, TYPICAL)), is_billed=False)

    def framing_tokens(self, model: str) -> int:
        """Uncached tokens of a request whose last block carries a breakpoint."""
        return self._ratios.get(model, TYPICAL).framing_tokens

    def learn(self, node: int, tokens: int) -> None:
        """A bill said how long a prefix is."""
        if node != ROOT:
            self._billed[node] = tokens

    def learn_within(self, node: int, longer: int) -> None:
        """A prefix lies within a longer one whose length is known."""
        if node not in self._billed:
            self._longer[node] = longer

    def _estimate(self, node: int, ratios: Ratios) -> int:
        """From the longest billed prefix on; up to a longer billed one, where there is one, in proportion."""
        tree = self._tree
        below = next((n for n in tree.prefix(node) if n in self._billed), ROOT)
        start = float(self._billed.get(below, ratios.overhead_tokens))
        added = ratios.tokens(tree.tokens(node)) - ratios.tokens(tree.tokens(below))
        longer = self._longer.get(node)
        if longer is not None:
            span = ratios.tokens(tree.tokens(longer)) - ratios.tokens(tree.tokens(below))
            if span > 0:
                added *= max(0.0, self._billed[longer] - start) / span
        return max(0, round(start + added))
