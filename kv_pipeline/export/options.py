"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kv_pipeline.errors import UsageError


class Format(StrEnum):
    """What is written. docs/export-formats.md has units and rounding of each."""

    TRACE = "trace"
    """Trace JSON, one file a conversation: kv-cache-tester, AIPerf `weka_trace`, AISimulate."""
    MOONCAKE = "mooncake"
    """Mooncake JSONL: AIPerf, Dynamo, vLLM, SGLang, guidellm."""
    AGENTIC_MOONCAKE = "agentic-mooncake"
    """Agentic Mooncake v2 JSONL: requests with what each waits for; Dynamo, AISimulate."""
    BAILIAN = "bailian"
    """JSONL as in Alibaba's Bailian traces: AIPerf `bailian_trace`."""
    ORACLE_GENERAL = "oracle-general"
    """libCacheSim's binary format, a record a block."""
    PARQUET = "parquet"
    """A row a request, for tools of your own."""


FILE_NAMES: Final = {
    Format.MOONCAKE: "mooncake.jsonl",
    Format.AGENTIC_MOONCAKE: "agentic-mooncake.jsonl",
    Format.BAILIAN: "bailian.jsonl",
    Format.ORACLE_GENERAL: "blocks.oracleGeneral",
    Format.PARQUET: "requests.parquet",
}
"""File written if `--out` names a folder, for the formats that put all conversations into one file."""

OWN_BLOCK_SIZES: Final = {Format.MOONCAKE: 512, Format.BAILIAN: 16}
"""Tokens a block that readers of a format expect; other formats say theirs and take that of the input."""


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
    """One numbering a trace; in a file of many traces, no number occurs in two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        format: What is written.
        profile: Which readers trace JSON is for.
        hash_ids: Scope of block numbers; None takes the format's own (upstream global, strict and agentic local).
        block_size: Tokens a block; None takes the format's, or the input's.
        min_requests: Traces with fewer requests, sub-agents included, are left out.
        split_at_gap_s: Split a conversation where nothing was under way for longer than this.
        with_subagents: Include sub-agents.
        anonymize: `trace_NNNN` and `agent_NNN` instead of ids, and no times of day.
        absolute_timestamps: Add ISO 8601 times beside the relative seconds.
        with_sessions: Whether Mooncake rows say which session they belong to.
    """

    format: Format = Format.TRACE
    profile: Profile = Profile.UPSTREAM
    hash_ids: HashIdScope | None = None
    block_size: int | None = None
    min_requests: int = 1
    split_at_gap_s: float | None = None
    with_subagents: bool = True
    anonymize: bool = False
    absolute_timestamps: bool = False
    with_sessions: bool = True

    @property
    def scope(self) -> HashIdScope:
        """The scope of block numbers that applies."""
        default = HashIdScope.LOCAL if self._knows_local_only else HashIdScope.GLOBAL
        return self.hash_ids or default

    @property
    def _knows_local_only(self) -> bool:
        return self.profile is Profile.STRICT or self.format is Format.AGENTIC_MOONCAKE

    def check(self) -> None:
        """Refuse combinations that no file can satisfy.

        Raises:
            UsageError: Two options exclude each other, or a number is out of range.
        """
        if self.format is not Format.TRACE and self.profile is Profile.STRICT:
            raise UsageError(f"Profiles are those of trace JSON; {self.format} has none. Leave out --profile.")
        if self.format is not Format.MOONCAKE and not self.with_sessions:
            raise UsageError(f"--no-sessions is for Mooncake rows, not for {self.format}. Leave it out.")
        if self._knows_local_only and self.scope is HashIdScope.GLOBAL:
            readers = "the strict profile" if self.format is Format.TRACE else self.format
            raise UsageError(f"Readers of {readers} refuse global ids. Use --hash-ids local.")
        self._check_times()
        if self.block_size is not None and self.block_size < 1:
            raise UsageError("--block-size must be at least 1.")
        if self.split_at_gap_s is not None and self.split_at_gap_s <= 0:
            raise UsageError("--split-at-gap must be above 0 seconds.")

    def _check_times(self) -> None:
        if not self.absolute_timestamps:
            return
        if self.profile is Profile.STRICT:
            raise UsageError("The strict profile has no key for absolute times. Use --profile upstream.")
        if self.format not in (Format.TRACE, Format.PARQUET):
            raise UsageError(f"{self.format} has no place for absolute times. Use --format trace or parquet.")
        if self.anonymize:
            raise UsageError("--anonymize removes times of day, --absolute-timestamps adds them. Choose one.")
