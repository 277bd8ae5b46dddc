"""What can be done about each cause of loss."""

from __future__ import annotations

from typing import Final

from kv_pipeline.core.causes import UNAVOIDABLE, Cause
from kv_pipeline.core.scenarios import Scenario

REMEDIES: Final[dict[Cause, str]] = {
    Cause.COMPACTION: "Compact at natural breaks and rarely; check that each compaction pays for itself, and start a "
    "new conversation where the old context is not needed.",
    Cause.LIFETIME_PASSED: "Ask for the 1-hour lifetime where pauses are longer than 5 minutes (promptCacheTtl, "
    "ENABLE_PROMPT_CACHING_1H), or keep pauses shorter.",
    Cause.SIBLING_IN_FLIGHT: "Start one of the parallel sub-agents first, and the others once its answer has begun.",
    Cause.BELOW_MINIMUM: "Prompts below the model's minimum are never cached: merge small requests, or use a model "
    "with a lower minimum.",
    Cause.LOOK_BACK_OVERFLOW: "Set a further breakpoint at least every 20 content blocks, so that the next request "
    "finds the last entry.",
    Cause.BREAKPOINT_MISSING: "Keep a cache_control marker on tools, on the system prompt and on the last message of "
    "every request.",
    Cause.MODEL_CHANGED: "Stay with one model within a conversation; give work for another model to a sub-agent.",
    Cause.THINKING_CHANGED: "Choose thinking and effort once, at the beginning of a conversation.",
    Cause.TOOL_CHOICE_CHANGED: "Keep tool_choice as it is from request to request; steer by the message instead.",
    Cause.SETTINGS_CHANGED: "Choose speed and context management once, at the beginning of a conversation.",
    Cause.TOOLS_ADDED: "Connect MCP servers and load tools before the first request, or defer loading (tool search), "
    "which leaves the prefix alone.",
    Cause.TOOLS_REMOVED: "Leave tools connected until the conversation ends.",
    Cause.TOOLS_REORDERED: "Send tools in one fixed order, for instance sorted by name.",
    Cause.TOOL_DESCRIPTION_CHANGED: "Keep what varies (dates, lists, paths) out of tool descriptions.",
    Cause.TOOL_SCHEMA_CHANGED: "Keep tool schemas fixed within a conversation; pin the versions of MCP servers.",
    Cause.CLIENT_VERSION_CHANGED: "Update the client between conversations, not while they run.",
    Cause.DATE_CHANGED: "Put the date into a message behind the last breakpoint instead of the system prompt.",
    Cause.GIT_STATUS_CHANGED: "Put the git status into a message instead of the system prompt, or take it once "
    "(includeGitInstructions).",
    Cause.WORKING_DIRECTORY_CHANGED: "Resume a conversation in the directory it began in.",
    Cause.SYSTEM_CHANGED: "Put what varies behind the fixed part of the system prompt, or into a message.",
    Cause.SERIALISATION_CHURN: "Serialise requests the same way every time: fixed order of keys, no rebuilt objects.",
    Cause.CONTAINER_FLIP: "Send a message's content always as a list of blocks, never as a bare string.",
    Cause.REMINDER_MOVED: "Append reminders to the newest message and leave them there.",
    Cause.TOOL_RESULT_CLEARED: "Clear old tool results in few large batches instead of one by one.",
    Cause.IMAGE_REMOVED: "Leave images in the history, or remove many at once.",
    Cause.HISTORY_REWRITTEN: "Treat the history as append-only: let no hook, proxy or client rewrite earlier messages.",
    Cause.UNEXPLAINED: "No known rule explains these: look at the requests in `kv-pipeline report`; the API may have "
    "evicted entries early.",
}
"""Every cause that a change could help, and what the change is."""

UNPROFITABLE: Final[dict[Cause, str]] = {
    Cause.LIFETIME_PASSED: "The 1-hour lifetime for every request would cost more than these losses: keep pauses under "
    "5 minutes, or ask for it only in conversations with long pauses.",
}
"""What is said instead where the scenario that stands for the remedy would cost more than it saves."""

SCENARIO_OF: Final[dict[Cause, Scenario]] = {
    Cause.LIFETIME_PASSED: Scenario.LIFETIME_1H,
    Cause.TOOLS_REORDERED: Scenario.STABLE_TOOLS,
    Cause.DATE_CHANGED: Scenario.STABLE_SYSTEM,
    Cause.GIT_STATUS_CHANGED: Scenario.STABLE_SYSTEM,
    Cause.WORKING_DIRECTORY_CHANGED: Scenario.STABLE_SYSTEM,
}
"""The scenario of WHAT_IF that predicts what a remedy is worth."""


def is_helpable(cause: Cause) -> bool:
    """Whether anything could be done."""
    return cause not in UNAVOIDABLE
