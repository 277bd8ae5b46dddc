"""Prompts in larger blocks than they were recorded in, without their tokens."""

from __future__ import annotations

from kv_pipeline.core.paths import BlockIds


def coarser_prompt(
    path: BlockIds, tail_id: int | None, prompt_tokens: int, block_size: int, factor: int
) -> tuple[BlockIds, int | None]:
    """A prompt in blocks of `factor` times the size.

    The id of a block says which tokens the whole prompt up to its end has. So a large block has the id of the last
    small block in it, and the rest of the prompt has that of the small tail, which is chained to the block before it.
    Ids of blocks and rests never meet: an id stands for one number of tokens from the start.

    Args:
        path: Ids of its full blocks; fewer than there are if the last ones are not known.
        tail_id: Id of the tokens behind them; None if there are none, or it is not known.
        prompt_tokens: Tokens of the prompt.
        block_size: Tokens a block in `path`.
        factor: At least 1.

    Returns:
        The same for the large blocks.
    """
    large = path[factor - 1 :: factor]
    if prompt_tokens % (block_size * factor) == 0:
        return large, None
    if prompt_tokens % block_size:
        return large, tail_id
    return large, int(path[-1]) if len(path) == prompt_tokens // block_size else None
