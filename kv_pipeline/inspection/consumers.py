"""Formats that can be told apart, and the readers that each is checked for."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Consumer(StrEnum):
    """Who reads trace files."""

    STRICT = "strict"
    """Everybody: what the strict profile promises."""
    KV_CACHE_TESTER = "kv-cache-tester"
    AIPERF = "aiperf"
    """AIPerf 0.13: `weka_trace`, `mooncake_trace`, `bailian_trace`."""
    AISIMULATE = "aisimulate"
    """AISimulate 0.13 and Dynamo: `weka`, `mooncake`, `agentic_mooncake`."""
    MOONCAKE = "mooncake"
    """Readers of Mooncake's own rows: vLLM, SGLang, guidellm, simulators."""
    LIBCACHESIM = "libcachesim"
    KV_PIPELINE = "kv-pipeline"
    """This program."""


class FileFormat(StrEnum):
    """What a file is."""

    TRACE = "trace"
    MOONCAKE = "mooncake"
    AGENTIC_MOONCAKE = "agentic-mooncake"
    BAILIAN = "bailian"
    ORACLE_GENERAL = "oracle-general"
    PARQUET = "parquet"


CONSUMERS: Final = {
    FileFormat.TRACE: (Consumer.STRICT, Consumer.KV_CACHE_TESTER, Consumer.AIPERF, Consumer.AISIMULATE),
    FileFormat.MOONCAKE: (Consumer.MOONCAKE, Consumer.AIPERF, Consumer.AISIMULATE),
    FileFormat.AGENTIC_MOONCAKE: (Consumer.AISIMULATE,),
    FileFormat.BAILIAN: (Consumer.AIPERF,),
    FileFormat.ORACLE_GENERAL: (Consumer.LIBCACHESIM,),
    FileFormat.PARQUET: (Consumer.KV_PIPELINE,),
}
"""Format to those who read it."""
