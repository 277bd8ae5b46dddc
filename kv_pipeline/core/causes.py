"""Why a request read less from the cache than its predecessor had left there: the closed set of causes.

Every request has exactly one. Order here is the order of tables and figures: from what cannot be helped to what can.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """The one cause that a request's lost tokens are put down to."""

    NEW_CONTENT = "new_content"
    COLD = "cold"
    COMPACTION = "compaction"
    LIFETIME_PASSED = "lifetime_passed"
    SIBLING_IN_FLIGHT = "sibling_in_flight"
    BELOW_MINIMUM = "below_minimum"
    LOOK_BACK_OVERFLOW = "look_back_overflow"
    BREAKPOINT_MISSING = "breakpoint_missing"
    MODEL_CHANGED = "model_changed"
    THINKING_CHANGED = "thinking_changed"
    TOOL_CHOICE_CHANGED = "tool_choice_changed"
    SETTINGS_CHANGED = "settings_changed"
    TOOLS_ADDED = "tools_added"
    TOOLS_REMOVED = "tools_removed"
    TOOLS_REORDERED = "tools_reordered"
    TOOL_DESCRIPTION_CHANGED = "tool_description_changed"
    TOOL_SCHEMA_CHANGED = "tool_schema_changed"
    CLIENT_VERSION_CHANGED = "client_version_changed"
    DATE_CHANGED = "date_changed"
    GIT_STATUS_CHANGED = "git_status_changed"
    WORKING_DIRECTORY_CHANGED = "working_directory_changed"
    SYSTEM_CHANGED = "system_changed"
    SERIALISATION_CHURN = "serialisation_churn"
    CONTAINER_FLIP = "container_flip"
    REMINDER_MOVED = "reminder_moved"
    TOOL_RESULT_CLEARED = "tool_result_cleared"
    IMAGE_REMOVED = "image_removed"
    HISTORY_REWRITTEN = "history_rewritten"
    UNEXPLAINED = "unexplained"


DESCRIPTIONS: Final[dict[Cause, str]] = {
    Cause.NEW_CONTENT: "nothing was lost; what was not read is new",
    Cause.COLD: "first request, nothing of it was there before",
    Cause.COMPACTION: "the history was replaced by its summary",
    Cause.LIFETIME_PASSED: "the gap was longer than the entry's lifetime",
    Cause.SIBLING_IN_FLIGHT: "the answer that writes the entry had not begun yet",
    Cause.BELOW_MINIMUM: "the prefix was shorter than the model caches",
    Cause.LOOK_BACK_OVERFLOW: "the entry lay further back than a breakpoint looks",
    Cause.BREAKPOINT_MISSING: "no breakpoint was set where the prefix could be written or read",
    Cause.MODEL_CHANGED: "models share no cache",
    Cause.THINKING_CHANGED: "thinking or effort changed, which starts messages anew",
    Cause.TOOL_CHOICE_CHANGED: "tool_choice changed, which starts messages anew",
    Cause.SETTINGS_CHANGED: "speed or context management changed",
    Cause.TOOLS_ADDED: "tools were added",
    Cause.TOOLS_REMOVED: "tools were removed",
    Cause.TOOLS_REORDERED: "the same tools came in another order",
    Cause.TOOL_DESCRIPTION_CHANGED: "a tool's description changed",
    Cause.TOOL_SCHEMA_CHANGED: "a tool's input schema changed",
    Cause.CLIENT_VERSION_CHANGED: "the client's version in the system prompt changed",
    Cause.DATE_CHANGED: "the date changed",
    Cause.GIT_STATUS_CHANGED: "the git status changed",
    Cause.WORKING_DIRECTORY_CHANGED: "the working directory changed",
    Cause.SYSTEM_CHANGED: "the system prompt changed elsewhere",
    Cause.SERIALISATION_CHURN: "equal content was written with other bytes",
    Cause.CONTAINER_FLIP: "a message's text moved between string and list",
    Cause.REMINDER_MOVED: "a system reminder moved, came or went within the history",
    Cause.TOOL_RESULT_CLEARED: "an old tool result was cleared",
    Cause.IMAGE_REMOVED: "an image was removed from the history",
    Cause.HISTORY_REWRITTEN: "an earlier message changed",
    Cause.UNEXPLAINED: "no known rule explains it",
}

UNAVOIDABLE: Final = frozenset({Cause.NEW_CONTENT, Cause.COLD})
"""Causes that no change of the client could help."""
