"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kv_pipeline.errors import UsageError


class Profile(StrEnum):
    """Which readers a trace file is for."""

    UPSTREAM = "upstream"
    """kv-cache-tester: adds `_analysis`; sub-agents nest."""
    STRICT = "strict"
    """AIPerf `weka_trace` and AISimulate: no unknown key anywhere; analysis goes to a file beside the trace."""


class HashIdScope(StrEnum):
    """How far a number stands for the same block."""

    GLOBAL = "global"
    """One numbering for all traces of the export."""
    LOCAL = "local"
    """One numbering a trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        profile: Which readers the files are for.
        hash_ids: Scope of block numbers; None takes the profile's own (upstream global, strict local).
        block_size: Tokens a block; None takes the store's.
        min_requests: Traces with fewer requests, sub-agents included, are left out.
        split_at_gap_s: Split a conversation where nothing was under way for longer than this.
        with_subagents: Include sub-agents.
        anonymize: `trace_NNNN` and `agent_NNN` instead of ids, and no times of day.
        absolute_timestamps: Add ISO 8601 times beside the relative seconds.
    """

    profile: Profile = Profile.UPSTREAM
    hash_ids: HashIdScope | None = None
    block_size: int | None = None
    min_requests: int = 1
    split_at_gap_s: float | None = None
    with_subagents: bool = True
    anonymize: bool = False
    absolute_timestamps: bool = False

    @property
    def scope(self) -> HashIdScope:
        """The scope of block numbers that applies."""
        default = HashIdScope.LOCAL if self.profile is Profile.STRICT else HashIdScope.GLOBAL
        return self.hash_ids or default

    def check(self) -> None:
        """Refuse combinations that no file can satisfy.

        Raises:
            UsageError: Two options exclude each other, or a number is out of range.
        """
        if self.profile is Profile.STRICT and self.scope is HashIdScope.GLOBAL:
            raise UsageError("Readers of the strict profile refuse global ids. Use --hash-ids local.")
        if self.profile is Profile.STRICT and self.absolute_timestamps:
            raise UsageError("The strict profile has no key for absolute times. Use --profile upstream.")
        if self.anonymize and self.absolute_timestamps:
            raise UsageError("--anonymize removes times of day, --absolute-timestamps adds them. Choose one.")
        if self.block_size is not None and self.block_size < 1:
            raise UsageError("--block-size must be at least 1.")
        if self.split_at_gap_s is not None and self.split_at_gap_s <= 0:
            raise UsageError("--split-at-gap must be above 0 seconds.")
