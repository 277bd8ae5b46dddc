"""One session: what its files share, and how a request is made for each of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

from kv_pipeline.core.normalise import SegmentKind
from kv_pipeline.schemas.requests import REBUILT
from kv_pipeline.sources.transcript_requests.answers import Gathered
from kv_pipeline.sources.transcript_requests.drafts import FIVE_MINUTES, Draft, Seen, Wanted
from kv_pipeline.sources.transcript_requests.messages import Sent, blocks_of
from kv_pipeline.sources.transcript_requests.placement import (
    assumed_message_breakpoints,
    assumed_system_breakpoints,
    recorded_breakpoints,
)
from kv_pipeline.sources.transcript_requests.recorded import NotRebuiltError, Rebuilt, RequestRecords, Shape
from kv_pipeline.sources.transcript_requests.tree import Contexts, Node

Intern = Callable[[SegmentKind, bytes], int]


class Asked(NamedTuple):
    """An answer whose request is to be made.

    Attributes:
        answer: As far as it was read: its first record.
        wanted: Where it belongs.
        node: Its place in the tree.
        request_ref: The recorded request that it names.
        requested_at: Time of that request, if it is recorded.
        seen: The latest snapshot of tools and system prompt in its file.
    """

    answer: Gathered
    wanted: Wanted
    node: Node
    request_ref: str | None
    requested_at: datetime | None
    seen: Seen | None


class Session:
    """What the files of one session share.

    Args:
        session_id: The session.
        wanted: Message id to where the answer belongs, of the answers whose requests are to be found.
        intern: Number of a segment.

    Attributes:
        records: What is recorded of requests.
        nodes: Record by uuid; None where a context begins behind it.
        drafts: Requests made so far.
    """

    def __init__(self, session_id: str, wanted: Mapping[str, Wanted], intern: Intern) -> None:
        self.records = RequestRecords()
        self.nodes: dict[str, Node | None] = {}
        self.drafts: list[Draft] = []
        self._session_id = session_id
        self._wanted = wanted
        self._intern = intern
        self._contexts = Contexts(self._plain)
        self._made: set[str] = set()
        self._n_places = 0

    def next_place(self) -> int:
        """Number of the next record."""
        self._n_places += 1
        return self._n_places

    def claim(self, message_id: str) -> Wanted | None:
        """Where an answer belongs, if its request is wanted, counts for this session and was not made yet."""
        wanted = self._wanted.get(message_id)
        if wanted is None or wanted.session_id != self._session_id or message_id in self._made:
            return None
        self._made.add(message_id)
        return wanted

    def make(self, asked: Asked) -> NotRebuiltError | None:
        """Make an answer's request: rebuilt if that can be verified, else from messages.

        Returns:
            Why it was not rebuilt; None if it was, or if the answer names no recorded request.

        Raises:
            ValueError: Content is not JSON.
            RecursionError: Content is nested too deeply.
        """
        problem = None
        if asked.request_ref is not None:
            try:
                self.drafts.append(self._rebuilt(asked, self.records.rebuild(asked.request_ref)))
            except NotRebuiltError as error:
                problem = error
            else:
                return None
        if asked.wanted.may_be_approximate:
            self.drafts.append(self._approximate(asked))
        return problem

    def _rebuilt(self, asked: Asked, request: Rebuilt) -> Draft:
        marked = {marker.path[1] for marker in request.markers if marker.path[0] == "messages"}
        segments = [self._plain(m) if i not in marked else self._listed(m) for i, m in enumerate(request.messages)]
        tools, system = self._shape(request.shape)
        return Draft(
            asked.answer,
            asked.wanted,
            asked.requested_at or asked.answer.first_at,
            segments,
            recorded_breakpoints(request.markers),
            params=request.params,
            tools=tools,
            system=system,
            exactness=REBUILT,
        )

    def _approximate(self, asked: Asked) -> Draft:
        node, answer = asked.node, asked.answer
        segments, last, sent_at = self._contexts.before(node.parent, node.file, node.place)
        self._contexts.remember(node, segments)
        requested_at = min(asked.requested_at or sent_at or answer.first_at, answer.first_at)
        ttl = answer.ttl or FIVE_MINUTES
        breakpoints = assumed_message_breakpoints(len(segments), last, answer.version, ttl)
        by_index = {len(segments) - behind: message for behind, message in enumerate(reversed(last), start=1)}
        segments = [*segments]
        for index in (marked["item_index"] for marked in breakpoints):
            if isinstance(index, int):
                segments[index] = self._listed(by_index[index])
        draft = Draft(answer, asked.wanted, requested_at, segments, breakpoints, seen=asked.seen or Seen())
        known = self.records.shape_of(node.request_ref) if node.request_ref is not None else None
        if known is not None:
            shape, draft.params = known
            draft.seen, (draft.tools, draft.system) = None, self._shape(shape)
            n_blocks = len(blocks_of(shape.system)) if shape.system is not None else 0
            draft.breakpoints = assumed_system_breakpoints(n_blocks, ttl) + breakpoints
        return draft

    def _shape(self, shape: Shape) -> tuple[int | None, int | None]:
        """Segments of tools and system prompt."""
        tools = None if shape.tools is None else self._intern(SegmentKind.TOOLS, shape.tools)
        return tools, None if shape.system is None else self._intern(SegmentKind.SYSTEM, shape.system)

    def _plain(self, message: Sent) -> int:
        """Segment of a message without a breakpoint."""
        if message.plain is None:
            message.plain = self._intern(SegmentKind.MESSAGE, message.raw(is_marked=False))
        return message.plain

    def _listed(self, message: Sent) -> int:
        """Segment of a message with a breakpoint."""
        if message.listed is None:
            message.listed = self._intern(SegmentKind.MESSAGE, message.raw(is_marked=True))
        return message.listed
