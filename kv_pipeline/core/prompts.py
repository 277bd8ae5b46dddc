"""Prompts as paths in one tree of content blocks, so that equal prefixes are the same node.

A request is its model, its settings, tools, system, then messages. Each node is the prefix that ends with one content
block; requests that begin alike share their nodes. A prompt is then its last node and the nodes that carry breakpoints,
however long it is, and what two prompts share is found by walking up from their ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from kv_pipeline.core.content_blocks import BILLING_HEADER, DEFERRED_TOOL, THINKING, ContentBlock

ROOT: Final = 0
_NUMBER_BITS: Final = 40
"""Numbers of nodes and segments are below 2 to the power of this."""
_CONTENT_ID_BITS: Final = 64


class Section(IntEnum):
    """The part of a request that a node lies in, in prompt order."""

    ROOT = 0
    SETTINGS = 1
    TOOLS = 2
    SYSTEM = 3
    MESSAGES = 4


POSITION_SECTIONS: Final = (Section.TOOLS, Section.SYSTEM, Section.MESSAGES)
"""Sections whose nodes are content blocks, with tokens and positions."""


class Segment(NamedTuple):
    """A segment as the cache sees it.

    Attributes:
        role: A message's role, None for tools and system.
        blocks: Its content blocks.
    """

    role: str | None
    blocks: tuple[ContentBlock, ...]


_WITHOUT_BLOCKS: Final = Segment(None, ())


class Settings(NamedTuple):
    """What of a request changes the meaning of its prompt: salted ids, or None where it was not sent.

    Attributes:
        model: Model that answered; models never share a cache.
        whole: Settings that start everything but tools anew (speed, context management).
        thinking: Thinking and effort, which start messages anew.
        tool_choice: Starts messages anew.
    """

    model: str
    whole: Hashable = None
    thinking: int | None = None
    tool_choice: int | None = None


class Breakpoint(NamedTuple):
    """A `cache_control` marker.

    Attributes:
        section: Part of the request; None for automatic caching, which marks the last block that can be marked.
        item_index: 0-based message; 0 for tools and system.
        block_index: 0-based content block of the item.
        ttl: `5m` or `1h`.
    """

    section: Section | None
    item_index: int
    block_index: int
    ttl: str


class Request(NamedTuple):
    """A request in segment numbers; None for a section that was not sent."""

    settings: Settings
    tools: int | None
    system: int | None
    messages: Sequence[int]
    breakpoints: tuple[Breakpoint, ...]


class Mark(NamedTuple):
    """A breakpoint in the tree: the node it sits on and the lifetime it asks for."""

    node: int
    ttl: str


class Prompt(NamedTuple):
    """A request in the tree.

    Attributes:
        end: Its last node.
        marks: Breakpoints in prompt order, the deepest last.
    """

    end: int
    marks: tuple[Mark, ...]


class PromptOptions(NamedTuple):
    """How the API makes prompts of requests.

    Attributes:
        strips_thinking: Models that drop earlier turns' thinking from the prompt.
        flips_matter: Whether text in a string and the same text in a list are different content to the cache.
        drops_headers: Whether the API takes the client's billing header out of the prompt.
    """

    strips_thinking: frozenset[str] = frozenset()
    flips_matter: bool = False
    drops_headers: bool = False


class PromptTree:
    """All prefixes of a set of requests.

    Node attributes are sequences by node number: `parent`, `depth` (in nodes), `section`, `block` (None for nodes that
    are no content block) and `item` (0-based tool, system block or message). A user's tree has several nodes for every
    request, so what a node takes in memory counts.
    """

    def __init__(self) -> None:
        self.parent = array("q", [ROOT])
        self.depth = array("q", [0])
        self.section = [Section.ROOT]
        self.block: list[ContentBlock | None] = [None]
        self.item = array("q", [0])
        self._tokens = array("q", [0, 0, 0])

    def append(self, parent: int, section: Section, block: ContentBlock | None, item: int) -> int:
        """Add a node; returns its number."""
        node = len(self.parent)
        self.parent.append(parent)
        self.depth.append(self.depth[parent] + 1)
        self.section.append(section)
        self.block.append(block)
        self.item.append(item)
        self._tokens.extend(_with_block(self.tokens(parent), section, block))
        return node

    def prefix(self, node: int) -> Iterator[int]:
        """A node and those before it, from the end, without the root."""
        while node != ROOT:
            yield node
            node = self.parent[node]

    def shared(self, one: int, other: int) -> int:
        """The last node of the common prefix of two nodes."""
        while one != other:
            if self.depth[one] < self.depth[other]:
                one, other = other, one
            one = self.parent[one]
        return one

    def is_prefix(self, node: int, end: int) -> bool:
        """Whether the prefix `node` is one of `end`."""
        return self.at_depth(end, self.depth[node]) == node

    def at_depth(self, end: int, depth: int) -> int:
        """The node of a prompt at a depth, or its end if it is not that deep."""
        while self.depth[end] > depth:
            end = self.parent[end]
        return end

    def tokens(self, node: int) -> tuple[int, int, int]:
        """Counted tokens of a prefix: tools, system, messages."""
        tools, system, messages = self._tokens[3 * node : 3 * node + 3]
        return tools, system, messages

    def n_tokens(self, node: int) -> int:
        """Counted tokens of a prefix."""
        return sum(self._tokens[3 * node : 3 * node + 3])

    def blocks_between(self, start: int, end: int) -> list[int]:
        """Nodes behind `start`, a prefix of `end`, in prompt order."""
        nodes = []
        while end != start:
            nodes.append(end)
            end = self.parent[end]
        return nodes[::-1]


class Sent(NamedTuple):
    """Requests as they were sent.

    Attributes:
        requests: The requests; gone through once for each tree.
        segments: Segment number to content. Numbers that are not there stand for segments without content blocks, such
            as an empty list of tools.
        options: How they become prompts.
    """

    requests: Iterable[Request]
    segments: Mapping[int, Segment]
    options: PromptOptions = PromptOptions()

    def place(self) -> tuple[PromptTree, list[Prompt]]:
        """A tree of all requests, and each one's place in it."""
        growing = _GrowingTree(self.segments, self.options)
        prompts = [growing.add(request) for request in self.requests]
        return growing.tree, prompts

    def rearranged(self, change: Callable[[Segment], Segment]) -> Sent:
        """The same requests with other segments."""
        return self._replace(segments={number: change(segment) for number, segment in self.segments.items()})


class _GrowingTree:
    """A tree while requests are added; what finds a node's children is needed no longer than that.

    Its keys are numbers made of numbers, since there are several for every request and tuples take twice the memory.
    """

    def __init__(self, segments: Mapping[int, Segment], options: PromptOptions) -> None:
        self._segments = segments
        self._options = options
        self._left_out = {DEFERRED_TOOL, BILLING_HEADER} if options.drops_headers else {DEFERRED_TOOL}
        self.tree = PromptTree()
        self._with_setting: dict[tuple[int, Hashable], int] = {}
        self._with_block: dict[int, int] = {}
        self._labels: dict[tuple[Hashable, ...], int] = {}
        self._after: dict[int, int] = {}
        self._mark: dict[tuple[int, str], Mark] = {}

    def add(self, request: Request) -> Prompt:
        """Place a request in the tree."""
        settings = request.settings
        node = self._set(ROOT, settings.model)
        tools = node = self._through(node, request.tools, Section.TOOLS)
        node = self._set(node, ("whole", settings.whole))
        system = node = self._through(node, request.system, Section.SYSTEM)
        node = self._set(node, ("messages", settings.thinking, settings.tool_choice))
        ends = self._along(node, request.messages, self._n_stripped(request))
        end = ends[-1] if ends else node
        return Prompt(end, self._marks(request, end, {Section.TOOLS: [tools], Section.SYSTEM: [system],
                                                      Section.MESSAGES: ends}))  # fmt: skip

    def _segment(self, number: int) -> Segment:
        return self._segments.get(number, _WITHOUT_BLOCKS)

    def _along(self, node: int, messages: Sequence[int], n_stripped: int) -> list[int]:
        """Over messages; a shortcut remembers where each leads. Returns the node after each."""
        after = self._after
        ends = []
        for index, number in enumerate(messages):
            strips = index < n_stripped
            key = node << _NUMBER_BITS + 1 | number << 1 | strips
            end = after.get(key)
            if end is None:
                segment = self._segment(number)
                end = after[key] = self._over_blocks(node, segment, Section.MESSAGES, index, strips=strips)
            node = end
            ends.append(node)
        return ends

    def _through(self, node: int, number: int | None, section: Section) -> int:
        """Over tools or system, if they were sent."""
        return node if number is None else self._over_blocks(node, self._segment(number), section, 0, strips=False)

    def _over_blocks(self, node: int, segment: Segment, section: Section, item: int, *, strips: bool) -> int:
        is_first = True
        for index, block in enumerate(segment.blocks):
            if block.kind in self._left_out or (strips and block.kind in THINKING):
                continue
            place = item if section is Section.MESSAGES else index
            is_flipped = self._options.flips_matter and block.is_string
            label = self._labels.setdefault((section, segment.role, is_first, is_flipped), len(self._labels))
            key = (label << _NUMBER_BITS | node) << _CONTENT_ID_BITS | block.content_id
            after = self._with_block.get(key)
            if after is None:
                after = self._with_block[key] = self.tree.append(node, section, block, place)
            node, is_first = after, False
        return node

    def _set(self, node: int, setting: Hashable) -> int:
        """Over something that changes the meaning of what follows."""
        key = (node, setting)
        after = self._with_setting.get(key)
        if after is None:
            after = self._with_setting[key] = self.tree.append(node, Section.SETTINGS, None, 0)
        return after

    def _n_stripped(self, request: Request) -> int:
        """Messages whose thinking the model drops: those before the last one that is no tool result."""
        if request.settings.model not in self._options.strips_thinking:
            return 0
        for index in range(len(request.messages) - 1, -1, -1):
            segment = self._segment(request.messages[index])
            if segment.role == "user" and any(block.kind != "tool_result" for block in segment.blocks):
                return index
        return 0

    def _marks(self, request: Request, end: int, ends: Mapping[Section, Sequence[int]]) -> tuple[Mark, ...]:
        marks: dict[int, str] = {}
        for breakpoint_ in request.breakpoints:
            node = self._marked(request, breakpoint_, end, ends)
            if node is not None:
                marks[node] = breakpoint_.ttl
        found = [self._mark.setdefault(mark, Mark(*mark)) for mark in marks.items()]
        return tuple(sorted(found, key=lambda mark: self.tree.depth[mark.node]))

    def _marked(
        self, request: Request, breakpoint_: Breakpoint, end: int, ends: Mapping[Section, Sequence[int]]
    ) -> int | None:
        """The node that a breakpoint sits on; None if its block is not in the prompt."""
        if breakpoint_.section is None:
            return self._last_markable(end)
        number, lasts = _segment_of(request, breakpoint_), ends[breakpoint_.section]
        if number is None:
            return None
        last = lasts[breakpoint_.item_index]
        blocks = self._segment(number).blocks
        behind = sum(block.kind not in self._left_out for block in blocks[breakpoint_.block_index + 1 :])
        return self.tree.at_depth(last, max(self.tree.depth[last] - behind, 0))

    def _last_markable(self, end: int) -> int | None:
        """Source: platform.claude.com, "Automatic caching": the last block that can be marked."""
        for node in self.tree.prefix(end):
            block = self.tree.block[node]
            if block is not None and block.kind not in THINKING:
                return node
        return None


def _segment_of(request: Request, breakpoint_: Breakpoint) -> int | None:
    """The segment that a breakpoint is in; None if it points nowhere."""
    if breakpoint_.section is Section.TOOLS:
        return request.tools
    if breakpoint_.section is Section.SYSTEM:
        return request.system
    is_there = 0 <= breakpoint_.item_index < len(request.messages)
    return request.messages[breakpoint_.item_index] if is_there else None


def _with_block(tokens: tuple[int, int, int], section: Section, block: ContentBlock | None) -> tuple[int, int, int]:
    if block is None:
        return tokens
    tools, system, messages = tokens
    n = block.tokens
    return (
        tools + n * (section is Section.TOOLS),
        system + n * (section is Section.SYSTEM),
        messages + n * (section is Section.MESSAGES),
    )


def breakpoints_of(markers: Sequence[Mapping[str, object]]) -> tuple[Breakpoint, ...]:
    """Breakpoints from the `breakpoints` column of RAW_REQUESTS."""
    names = ("section", "item_index", "block_index", "ttl")
    return tuple([_breakpoint(*map(marker.__getitem__, names)) for marker in markers])


@lru_cache(maxsize=65_536)
def _breakpoint(section: object, item_index: object, block_index: object, ttl: object) -> Breakpoint:
    """One object for all that are equal, as those of a conversation's turns mostly are."""
    sections = {"tools": Section.TOOLS, "system": Section.SYSTEM, "messages": Section.MESSAGES}
    return Breakpoint(sections.get(str(section)), int(str(item_index or 0)), int(str(block_index or 0)), str(ttl))
