"""The tree of a session's records, and the messages on the way to each answer.

Records link to their parent by uuid. Following these links alone would lose content: an assistant message stands on one
record a block, and the results of parallel calls hang on the block of their call, beside the path. So blocks of one
message id are one node, and all results of a message's calls belong to what follows it.

Between two assistant messages stands one *run* of user records and attachments. It becomes a user message (blocks in
the order of the records, reminders before a prompt and behind results) and, if attachments were rendered for the
system role, a system message behind it.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from kv_pipeline.sources.transcript_requests.messages import Sent

RECENT_ANSWERS: Final = 16
"""Answers whose context is kept at hand."""
SYSTEM: Final = "system"
USER: Final = "user"
ASSISTANT: Final = "assistant"
REMINDER: Final = "reminder"
"""Role of attachments that are rendered into user messages."""
_WRAPPER: Final = re.compile(r"\s*<system-reminder>\n?(.*?)\n?</system-reminder>\s*", re.DOTALL)


class Node:
    """A record of the tree; of an assistant message all its records.

    Attributes:
        parent: The record before it; None where a context begins.
        place: Number of the record in its session, in the order of reading.
        file: Number of its file.
        role: `user`, `assistant`, `system`, `reminder`; None for records without content for the model.
        blocks: Content blocks as raw JSON.
        time: When it was written.
        results: Of an assistant message, the records that answer its calls.
        request_ref: The latest recorded request on the way to the record, itself included; None if there is none.
    """

    __slots__ = ("blocks", "file", "parent", "place", "request_ref", "results", "role", "sent", "time")

    def __init__(
        self,
        parent: Node | None,
        place: int,
        file: int,
        role: str | None = None,
        blocks: Sequence[bytes] = (),
        time: datetime | None = None,
    ) -> None:
        self.parent = parent
        self.place = place
        self.file = file
        self.role = role
        self.blocks = list(blocks)
        self.time = time
        self.results: list[Node] = []
        self.sent: Sent | None = None
        self.request_ref: str | None = parent.request_ref if parent else None


class Contexts:
    """Gives the messages that each answer was given to.

    Args:
        intern: Segment of a message without a breakpoint.
    """

    def __init__(self, intern: Callable[[Sent], int]) -> None:
        self._intern = intern
        self._recent: OrderedDict[Node, list[int]] = OrderedDict()

    def before(self, node: Node | None, file: int, place: int) -> tuple[list[int], list[Sent], datetime | None]:
        """What was sent for an answer.

        Args:
            node: The answer's parent.
            file: File of the answer.
            place: Place of its first record.

        Returns:
            Segments of the messages, the last two messages themselves, and the time of the latest record of the run.
        """
        segments, runs = self._known(node)
        last: list[Sent] = []
        time: datetime | None = None
        for index, (assistant, run) in enumerate(runs):
            is_last = index == len(runs) - 1
            reader = file if is_last or not run else run[0].file
            records = _with_results(assistant, run, reader, place)
            messages = _messages(records)
            time = max((record.time for record in records if record.time is not None), default=None)
            if assistant is not None:
                messages = [self._assistant(assistant), *messages]
            segments = segments + [self._intern(message) for message in messages]
            last = (last + messages)[-2:]
        return segments, last, time

    def remember(self, answer: Node, segments: list[int]) -> None:
        """Keep the context of an answer at hand for those that follow it."""
        self._recent[answer] = segments
        if len(self._recent) > RECENT_ANSWERS:
            self._recent.popitem(last=False)

    def _known(self, node: Node | None) -> tuple[list[int], list[tuple[Node | None, list[Node]]]]:
        """Segments at hand, and from there on each assistant message with the run behind it."""
        runs: list[tuple[Node | None, list[Node]]] = []
        run: list[Node] = []
        while node is not None:
            if node.role == ASSISTANT:
                runs.append((node, run[::-1]))
                run = []
                if node in self._recent:
                    return self._recent[node], runs[::-1]
            elif node.role is not None:
                run.append(node)
            node = node.parent
        return [], [(None, run[::-1]), *runs[::-1]]

    def _assistant(self, node: Node) -> Sent:
        if node.sent is None or len(node.sent.blocks) != len(node.blocks):
            node.sent = Sent(ASSISTANT, node.blocks)
        return node.sent


def _with_results(assistant: Node | None, run: list[Node], file: int, place: int) -> list[Node]:
    """A run with the results that hang beside the path, in the order of the records."""
    if assistant is None or not assistant.results:
        return run
    beside = [node for node in assistant.results if node.file == file and node.place < place]
    return sorted({*run, *beside}, key=lambda node: node.place)


def _messages(run: Sequence[Node]) -> list[Sent]:
    return list(_assembled(run))


def _assembled(run: Sequence[Node]) -> Iterator[Sent]:
    own = [block for node in run if node.role == USER for block in node.blocks]
    reminders = [block for node in run if node.role == REMINDER for block in node.blocks]
    is_result = any(b'"tool_result"' in block for block in own)
    content = [*own, *reminders] if is_result else [*reminders, *own]
    if content:
        yield Sent(USER, content)
    announced = [block for node in run if node.role == SYSTEM for block in node.blocks]
    if announced:
        text = "\n\n".join(map(_unwrapped, announced))
        yield Sent(SYSTEM, [json.dumps({"type": "text", "text": text}, separators=(",", ":")).encode()])


def _unwrapped(block: bytes) -> str:
    """The text of a block without the tags around it, which system messages do not need."""
    text = str(json.loads(block)["text"])
    found = _WRAPPER.fullmatch(text)
    return found[1] if found else text
