"""All requests of a user through the *API* model, in order of time: what each reads, and why it reads no more."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

from kv_pipeline.core.api_model import ApiCache, Prediction, Use
from kv_pipeline.core.attribution import Examiner, Loss, Situation, Turn, loss_of
from kv_pipeline.core.lengths import LengthBook, Ratios, learn_ratios
from kv_pipeline.core.prompts import PromptTree, Settings


class Step(NamedTuple):
    """A request on its way through the model.

    Attributes:
        settings: Its settings.
        use: The request as the API sees it.
        is_traced: Whether it has a place in an agent's history. Others (replays, side requests) use the cache all
            the same: they are simulated, but not explained.
        is_after_compaction: Whether the client compacted the history just before.
    """

    settings: Settings
    use: Use
    is_traced: bool
    is_after_compaction: bool = False


class Explained(NamedTuple):
    """What became of a request.

    Attributes:
        prediction: What the model expects.
        situation: What the cache held for it.
        loss: What it lost, and why.
        predecessor: The agent's request before, None for its first.
    """

    prediction: Prediction
    situation: Situation
    loss: Loss
    predecessor: Turn | None


def explain(
    tree: PromptTree, steps: Iterable[Step], lengths: LengthBook, *, shares_prefixes: bool = False
) -> Iterator[Explained | None]:
    """Simulate requests in order of time; None where a request belongs to no agent. One at a time, as they are large.

    Args:
        tree: Their prompts.
        steps: The requests.
        lengths: What is known of prefixes' lengths before; afterwards, what all bills say.
        shares_prefixes: Whether tools and system of one owner can be read by all.
    """
    cache = ApiCache(tree, lengths, shares_prefixes=shares_prefixes)
    examiner = Examiner(tree, cache, lengths)
    latest: dict[Hashable, Turn] = {}
    for step in steps:
        if not step.is_traced:
            cache.use(step.use)
            yield None
            continue
        turn = Turn(step.settings, step.use, step.is_after_compaction, latest.get(step.use.agent))
        situation = examiner.examine(turn)
        prediction = cache.use(step.use)
        latest[step.use.agent] = turn._replace(predecessor=None)
        yield Explained(prediction, situation, loss_of(situation, prediction, step.use), turn.predecessor)


def ratios_of(tree: PromptTree, uses: Sequence[Use]) -> dict[str, Ratios]:
    """API tokens per counted token of each model, from all bills there are."""
    bills: dict[str, list[tuple[tuple[int, int, int], int]]] = {}
    framings: dict[str, list[int]] = {}
    for use in uses:
        if use.bill is None:
            continue
        bills.setdefault(use.model, []).append((tree.tokens(use.prompt.end), use.bill.prompt_tokens))
        marks = use.prompt.marks[: use.rules.max_breakpoints]
        if use.bill.cached_tokens and marks and marks[-1].node == use.prompt.end:
            framings.setdefault(use.model, []).append(use.bill.input_tokens)
    return {model: learn_ratios(of_model, framings.get(model, ())) for model, of_model in bills.items()}
