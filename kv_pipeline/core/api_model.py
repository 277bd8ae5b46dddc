"""The *API* model of a prompt cache: what a request will be billed, by the documented rules.

Entries are written only at breakpoints, and a breakpoint reads the longest entry among the positions it looks back on.
An entry lives 5 minutes or 1 hour from the start of its last use, and can be read once the answer that wrote it began.
Source of each rule: `api_rules`; the slow and obvious definition lives beside the tests.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from kv_pipeline.core.api_rules import LIFETIME_S, Rules
from kv_pipeline.core.lengths import Length, LengthBook
from kv_pipeline.core.prompts import ROOT, Mark, Prompt, PromptTree, Section

_COLLAPSING = ("tool_use", "tool_result")
_PLAUSIBLE_SHARE, _PLAUSIBLE_TOKENS = 0.25, 64
"""How far a bill may be from the estimate of a prefix to be taken for that prefix's length."""


class Bill(NamedTuple):
    """What the API counted, in tokens."""

    input_tokens: int
    read_tokens: int
    write_5m_tokens: int
    write_1h_tokens: int

    @property
    def cached_tokens(self) -> int:
        """Tokens up to the last breakpoint."""
        return self.read_tokens + self.write_5m_tokens + self.write_1h_tokens

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt."""
        return self.cached_tokens + self.input_tokens


class Use(NamedTuple):
    """One request as the API sees it.

    Attributes:
        prompt: Its place in the tree.
        model: Model that answers.
        owner: Whose cache it uses (organisation and workspace; here: the user).
        agent: Agent that sent it, None if unknown. An agent waits for its answer, so what it wrote it can read,
            even where times are too coarse to tell.
        started_s: Time of the request.
        began_s: Time from which what it writes can be read.
        minimum_tokens: Shorter prefixes are not cached.
        rules: The rules of its day.
        bill: What was billed; None if unknown.
    """

    prompt: Prompt
    model: str
    owner: str
    agent: Hashable | None
    started_s: float
    began_s: float
    minimum_tokens: int
    rules: Rules
    bill: Bill | None


class Prediction(NamedTuple):
    """What the model expects of a request.

    Attributes:
        hit: Node of the entry that is read; ROOT for none.
        cached: Node up to which the prompt is in the cache afterwards; ROOT for none.
        read: Length of the hit.
        bill: Expected tokens by kind.
    """

    hit: int
    cached: int
    read: Length
    bill: Bill


class Entry:
    """A prefix in the cache, as the request wrote it."""

    __slots__ = ("_agent", "_began_s", "lifetime_s", "used_s")

    def __init__(self, use: Use, lifetime_s: float) -> None:
        self.used_s = use.started_s
        self.lifetime_s = lifetime_s
        self._agent = use.agent
        self._began_s = use.began_s

    def is_alive(self, now_s: float) -> bool:
        """Whether its lifetime lasts; a gap equal to it still hits."""
        return now_s - self.used_s <= self.lifetime_s

    def is_readable(self, use: Use) -> bool:
        """Whether the answer that wrote it has begun when a request comes."""
        return self._began_s <= use.started_s or (self._agent is not None and self._agent == use.agent)


class ApiCache:
    """The API's cache while requests come in, in order of time.

    Args:
        tree: The requests' prompts.
        lengths: What is known of prefixes' lengths.
        shares_prefixes: Whether tools and system of one owner can be read by all.
        learns: Whether `lengths` grows with every bill.
    """

    def __init__(
        self, tree: PromptTree, lengths: LengthBook, *, shares_prefixes: bool = False, learns: bool = True
    ) -> None:
        self._tree = tree
        self._lengths = lengths
        self._shares_prefixes = shares_prefixes
        self._learns = learns
        self._entries: dict[tuple[str, int], Entry] = {}

    def entry(self, owner: str, node: int) -> Entry | None:
        """The newest entry of a prefix, dead or alive."""
        return self._entries.get(self._key(owner, node))

    def use(self, use: Use) -> Prediction:
        """Predict a request, then let it read and write, then learn from its bill."""
        hit = self._hit(use)
        marks = [mark for mark in self._marks(use) if self._is_long_enough(mark.node, use)]
        prediction = self._predict(use, hit, marks)
        self._write(use, hit, self._written(use, marks))
        if self._learns and use.bill is not None:
            learn_bill(self._lengths, use, use.bill)
            self._learn_read(use, use.bill, prediction)
        return prediction

    def looked_at(self, prompt: Prompt, rules: Rules) -> Iterator[int]:
        """Nodes at which a request searches for an entry, the longest prefix first."""
        seen = self._tree.depth[prompt.end] + 1
        for mark in reversed(prompt.marks[: rules.max_breakpoints]):
            for node in self._look_back(mark.node, rules):
                if self._tree.depth[node] < seen:
                    seen = self._tree.depth[node]
                    yield node

    def _key(self, owner: str, node: int) -> tuple[str, int]:
        is_shared = self._shares_prefixes and self._tree.section[node] is not Section.MESSAGES
        return ("" if is_shared else owner, node)

    def _marks(self, use: Use) -> tuple[Mark, ...]:
        return use.prompt.marks[: use.rules.max_breakpoints]

    def _hit(self, use: Use) -> int:
        for node in self.looked_at(use.prompt, use.rules):
            entry = self.entry(use.owner, node)
            if entry is not None and entry.is_readable(use) and entry.is_alive(use.started_s):
                return node
        return ROOT

    def _look_back(self, node: int, rules: Rules) -> Iterator[int]:
        n_positions, previous_kind = 0, ""
        for prefix in self._tree.prefix(node):
            block = self._tree.block[prefix]
            if block is None:
                continue
            continues = rules.collapses_tool_runs and block.kind in _COLLAPSING and block.kind == previous_kind
            n_positions += not continues
            if n_positions > rules.look_back_positions:
                return
            previous_kind = block.kind
            yield prefix

    def _is_long_enough(self, node: int, use: Use) -> bool:
        return self._lengths.of(node, use.model).tokens >= use.minimum_tokens

    def _predict(self, use: Use, hit: int, marks: list[Mark]) -> Prediction:
        """Source: platform.claude.com, "Mixing different TTLs": read A, 1-hour write B - A, 5-minute write C - B."""
        lengths, depth = self._lengths, self._tree.depth
        read = lengths.of(hit, use.model)
        written = [mark for mark in marks if depth[mark.node] > depth[hit]]
        cached = written[-1].node if written else hit
        one_hour = [mark.node for mark in written if mark.ttl == "1h"]
        read_end = read.tokens
        one_hour_end = max(read_end, lengths.of(one_hour[-1], use.model).tokens) if one_hour else read_end
        cached_end = max(one_hour_end, lengths.of(cached, use.model).tokens)
        bill = Bill(
            self._uncached(use, cached, cached_end), read_end, cached_end - one_hour_end, one_hour_end - read_end
        )
        return Prediction(hit, cached, read, bill)

    def _uncached(self, use: Use, cached: int, cached_tokens: int) -> int:
        """Tokens behind what is cached; framing is no block, so behind the last block it is all there is."""
        if cached == use.prompt.end:
            return self._lengths.framing_tokens(use.model)
        return max(0, self._lengths.of(use.prompt.end, use.model).tokens - cached_tokens)

    def _written(self, use: Use, long_enough: list[Mark]) -> list[Mark]:
        """Marks that have an entry afterwards. What the API did outweighs what it was expected to do."""
        if use.bill is None or not self._learns:
            return long_enough
        if not use.bill.cached_tokens:
            return []
        last = self._marks(use)[-1:]
        return [*(mark for mark in long_enough if mark not in last), *last]

    def _write(self, use: Use, hit: int, marks: list[Mark]) -> None:
        """A use renews the entry that was read and every marked one; marks without a living entry get one."""
        found = self.entry(use.owner, hit)
        if found is not None:
            found.used_s = use.started_s
        for mark in marks:
            entry = self.entry(use.owner, mark.node)
            if entry is not None and entry.is_alive(use.started_s):
                entry.used_s = use.started_s
                entry.lifetime_s = max(entry.lifetime_s, LIFETIME_S[mark.ttl])
            else:
                self._entries[self._key(use.owner, mark.node)] = Entry(use, LIFETIME_S[mark.ttl])

    def _learn_read(self, use: Use, bill: Bill, prediction: Prediction) -> None:
        """What was read is the length of the entry that was hit, if that is plausible."""
        read = self._lengths.of(prediction.hit, use.model)
        error = abs(bill.read_tokens - read.tokens)
        if not read.is_billed and bill.read_tokens and error <= _PLAUSIBLE_SHARE * read.tokens + _PLAUSIBLE_TOKENS:
            self._lengths.learn(prediction.hit, bill.read_tokens)


def learn_bill(lengths: LengthBook, use: Use, bill: Bill) -> None:
    """Note what a bill says of the lengths of a request's own boundaries, whatever of them was read."""
    marks = use.prompt.marks[: use.rules.max_breakpoints]
    is_marked_at_end = bool(marks) and marks[-1].node == use.prompt.end
    if not is_marked_at_end or not bill.cached_tokens:
        lengths.learn(use.prompt.end, bill.prompt_tokens)
    if not marks or not bill.cached_tokens:
        return
    last = marks[-1].node
    lengths.learn(last, bill.cached_tokens)
    one_hour = [mark.node for mark in marks if mark.ttl == "1h"]
    if one_hour and bill.write_1h_tokens and bill.write_5m_tokens:
        lengths.learn(one_hour[-1], bill.read_tokens + bill.write_1h_tokens)
    for mark in marks[:-1]:
        lengths.learn_within(mark.node, last)
