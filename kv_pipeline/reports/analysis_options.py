"""What an analysis of trace files is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kv_pipeline.errors import UsageError
from kv_pipeline.kv_models import DEFAULT_KV_MODEL, kv_bytes_per_token
from kv_pipeline.sources.trace_json.options import NestedTimes


class Scope(StrEnum):
    """Who shares a cache."""

    CONVERSATION = "conversation"
    """Main thread and sub-agents of one trace."""
    FLEET = "fleet"
    """All traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisOptions:
    """Options of an analysis.

    Attributes:
        scope: Who shares a cache in the curves of all traces.
        nested_times: What `t` inside a sub-agent counts from.
        kv_model: Model whose KV cache is counted in GB; None takes `DEFAULT_KV_MODEL` unless bytes are given.
        kv_bytes_per_token: KV bytes a token instead.
        limit: Show only the first traces; None shows all.
    """

    scope: Scope = Scope.CONVERSATION
    nested_times: NestedTimes = NestedTimes.AUTO
    kv_model: str | None = None
    kv_bytes_per_token: float | None = None
    limit: int | None = None

    def kv(self) -> tuple[str | None, float]:
        """Name of the model, None if bytes were given, and KV bytes a token.

        Raises:
            UsageError: Both were given, or the model is not known.
        """
        if self.kv_bytes_per_token is None:
            name = self.kv_model or DEFAULT_KV_MODEL
            return name, float(kv_bytes_per_token(name))
        if self.kv_model is not None:
            raise UsageError("--kv-model and --kv-bytes-per-token exclude each other.")
        return None, self.kv_bytes_per_token
