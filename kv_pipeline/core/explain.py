"""All requests of a user through the *API* model, in order of time: what each reads, and why it reads no more."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
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
        agent: The agent whose history it continues; None for requests that only use the cache (replays, failed
            and side requests), which are simulated but not explained.
        is_after_compaction: Whether the client compacted the history just before.
    """

    settings: Settings
    use: Use
    agent: Hashable | None
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
    tree: PromptTree, steps: Iterable[Step], ratios: Mapping[str, Ratios], *, shares_prefixes: bool = False
) -> list[Explained | None]:
    """Simulate requests in order of time; None where a request belongs to no agent."""
    lengths = LengthBook(tree, ratios)
    cache = ApiCache(tree, lengths, shares_prefixes=shares_prefixes)
    examiner = Examiner(tree, cache, lengths)
    latest: dict[Hashable, Turn] = {}
    explained: list[Explained | None] = []
    for step in steps:
        if step.agent is None:
            cache.use(step.use)
            explained.append(None)
            continue
        turn = Turn(step.settings, step.use, step.is_after_compaction, latest.get(step.agent))
        situation = examiner.examine(turn)
        prediction = cache.use(step.use)
        explained.append(Explained(prediction, situation, loss_of(situation, prediction, step.use), turn.predecessor))
        latest[step.agent] = turn._replace(predecessor=None)
    return explained


def predict(
    tree: PromptTree, uses: Iterable[Use], ratios: Mapping[str, Ratios], *, is_as_sent: bool = True
) -> list[Prediction]:
    """Simulate requests in order of time, without asking why.

    Args:
        tree: Their prompts.
        uses: The requests.
        ratios: API tokens per counted token, per model.
        is_as_sent: Whether the prompts are those that were billed; otherwise bills only tell whole lengths.
    """
    cache = ApiCache(tree, LengthBook(tree, ratios), learns_reads=is_as_sent)
    return [cache.use(use) for use in uses]


def ratios_of(tree: PromptTree, uses: Sequence[Use]) -> dict[str, Ratios]:
    """API tokens per counted token of each model, from all bills there are."""
    bills: dict[str, list[tuple[tuple[int, int, int], int]]] = {}
    for use in uses:
        if use.bill is not None:
            bills.setdefault(use.model, []).append((tree.tokens[use.prompt.end], use.bill.prompt_tokens))
    return {model: learn_ratios(of_model) for model, of_model in bills.items()}
