"""What changed between a request and its predecessor: the first difference of their prompts, and its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from kv_pipeline.core.causes import Cause
from kv_pipeline.core.content_blocks import WITHOUT_REMINDERS, ContentBlock, facet
from kv_pipeline.core.prompts import ROOT, PromptTree, Section, Settings

_SYSTEM_PARTS: Final = {
    "version": Cause.CLIENT_VERSION_CHANGED,
    "date": Cause.DATE_CHANGED,
    "git": Cause.GIT_STATUS_CHANGED,
    "directory": Cause.WORKING_DIRECTORY_CHANGED,
}


class Divergence(NamedTuple):
    """The first difference of two prompts.

    Attributes:
        cause: What it is called.
        section: `model`, `settings`, `tools`, `system` or `messages`.
        place: 0-based tool, system block or message; None where there is none.
    """

    cause: Cause
    section: str
    place: int | None


def diverges(
    tree: PromptTree, before: tuple[Settings, int], after: tuple[Settings, int], *, is_after_compaction: bool = False
) -> Divergence | None:
    """First difference of a prompt and its predecessor.

    Args:
        tree: Both are in it.
        before: The predecessor's settings, and the node up to which its prompt is looked at.
        after: The request's settings and last node.
        is_after_compaction: Whether the client says that it compacted the history in between.

    Returns:
        None if the request continues its predecessor.
    """
    (old_settings, old_end), (new_settings, new_end) = before, after
    if old_settings.model != new_settings.model:
        return Divergence(Cause.MODEL_CHANGED, "model", None)
    shared = tree.shared(old_end, new_end)
    if shared == old_end:
        return None
    if is_after_compaction:
        return Divergence(Cause.COMPACTION, "messages", None)
    return _named(tree, before, after, shared)


def _named(tree: PromptTree, before: tuple[Settings, int], after: tuple[Settings, int], shared: int) -> Divergence:
    (old_settings, old_end), (new_settings, new_end) = before, after
    old, new = tree.blocks_between(shared, old_end), tree.blocks_between(shared, new_end)
    sections = {_section(tree, old), _section(tree, new)}
    if Section.TOOLS in sections:
        return _tools(tree, _in(tree, old_end, Section.TOOLS), _in(tree, new_end, Section.TOOLS))
    if Section.SYSTEM in sections:
        return _system(tree, _of(tree, old, Section.SYSTEM), _of(tree, new, Section.SYSTEM))
    return _settings(old_settings, new_settings) if Section.SETTINGS in sections else _messages(tree, old, new)


def _section(tree: PromptTree, nodes: Sequence[int]) -> Section:
    return tree.section[nodes[0]] if nodes else Section.ROOT


def _in(tree: PromptTree, end: int, section: Section) -> list[int]:
    """All nodes of a section of a prompt."""
    return _of(tree, tree.blocks_between(ROOT, end), section)


def _of(tree: PromptTree, nodes: Sequence[int], section: Section) -> list[int]:
    return [node for node in nodes if tree.section[node] is section]


def _blocks(tree: PromptTree, nodes: Sequence[int]) -> list[ContentBlock]:
    return [block for node in nodes if (block := tree.block[node]) is not None]


def _settings(old: Settings, new: Settings) -> Divergence:
    for cause, changed in (
        (Cause.SETTINGS_CHANGED, old.whole != new.whole),
        (Cause.THINKING_CHANGED, old.thinking != new.thinking),
    ):
        if changed:
            return Divergence(cause, "settings", None)
    return Divergence(Cause.TOOL_CHOICE_CHANGED, "settings", None)


def _tools(tree: PromptTree, old_nodes: list[int], new_nodes: list[int]) -> Divergence:
    old, new = _blocks(tree, old_nodes), _blocks(tree, new_nodes)
    index = _first_difference([block.content_id for block in old], [block.content_id for block in new])
    return Divergence(_tools_cause(old, new), "tools", index)


def _tools_cause(old: list[ContentBlock], new: list[ContentBlock]) -> Cause:
    """Source of the order: a new set of names rebuilds the list, so what else changed comes second."""
    old_tools, new_tools = ({facet(b, "name"): b for b in blocks} for blocks in (old, new))
    if new_tools.keys() - old_tools.keys():
        return Cause.TOOLS_ADDED
    if old_tools.keys() - new_tools.keys():
        return Cause.TOOLS_REMOVED
    changed = [(old_tools[name], tool) for name, tool in new_tools.items() if old_tools[name] != tool]
    if any(facet(a, "schema") != facet(b, "schema") for a, b in changed):
        return Cause.TOOL_SCHEMA_CHANGED
    if any(facet(a, "description") != facet(b, "description") for a, b in changed):
        return Cause.TOOL_DESCRIPTION_CHANGED
    if changed:
        is_equal = all(a.canonical_id == b.canonical_id for a, b in changed)
        return Cause.SERIALISATION_CHURN if is_equal else Cause.TOOL_SCHEMA_CHANGED
    return Cause.TOOLS_REORDERED


def _system(tree: PromptTree, old: list[int], new: list[int]) -> Divergence:
    if not old or not new:
        node = (old or new)[0]
        return Divergence(Cause.SYSTEM_CHANGED, "system", tree.item[node])
    (was,), (is_now,) = _blocks(tree, old[:1]), _blocks(tree, new[:1])
    return Divergence(_system_cause(was, is_now), "system", tree.item[new[0]])


def _system_cause(was: ContentBlock, is_now: ContentBlock) -> Cause:
    if was.canonical_id == is_now.canonical_id:
        return Cause.SERIALISATION_CHURN
    parts = _changed_facets(was, is_now)
    if not parts or "rest" in parts:
        return Cause.SYSTEM_CHANGED
    return next(cause for part, cause in _SYSTEM_PARTS.items() if part in parts)


def _messages(tree: PromptTree, old: list[int], new: list[int]) -> Divergence:
    old, new = _of(tree, old, Section.MESSAGES), _of(tree, new, Section.MESSAGES)
    index = tree.item[(old or new)[0]] if old or new else None
    if not old or not new:
        return Divergence(Cause.HISTORY_REWRITTEN, "messages", index)
    return Divergence(_message_cause(_blocks(tree, old), _blocks(tree, new)), "messages", index)


def _message_cause(old: list[ContentBlock], new: list[ContentBlock]) -> Cause:
    """Named after the first block that differs; reminders come and go, so what stands behind them counts as well."""
    was, is_now = old[0], new[0]
    if was.content_id == is_now.content_id and was.is_string != is_now.is_string:
        return Cause.CONTAINER_FLIP
    if was.canonical_id == is_now.canonical_id:
        return Cause.SERIALISATION_CHURN
    if is_now.is_cleared and not was.is_cleared:
        return Cause.TOOL_RESULT_CLEARED
    if was.has_image and not is_now.has_image:
        return Cause.IMAGE_REMOVED
    if was.is_reminder or is_now.is_reminder or _differ_in_reminders(was, is_now):
        return Cause.REMINDER_MOVED
    parts = _changed_facets(was, is_now)
    named = [cause for part, cause in _SYSTEM_PARTS.items() if part in parts]
    return named[0] if named and "rest" not in parts else Cause.HISTORY_REWRITTEN


def _differ_in_reminders(was: ContentBlock, is_now: ContentBlock) -> bool:
    """Whether two blocks are equal but for reminders folded into them."""
    ids = {facet(block, WITHOUT_REMINDERS) or block.content_id for block in (was, is_now)}
    return len(ids) == 1


def _changed_facets(was: ContentBlock, is_now: ContentBlock) -> set[str]:
    return {name for name, _ in set(was.facets) ^ set(is_now.facets)}


def _first_difference(old: list[int], new: list[int]) -> int:
    pairs = zip(old, new, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
