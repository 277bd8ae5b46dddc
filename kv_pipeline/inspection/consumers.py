"""Formats that can be told apart, and the readers that each is checked for."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from kv_pipeline.export.options import Format


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


CONSUMERS: Final = {
    Format.TRACE: (Consumer.STRICT, Consumer.KV_CACHE_TESTER, Consumer.AIPERF, Consumer.AISIMULATE),
    Format.MOONCAKE: (Consumer.MOONCAKE, Consumer.AIPERF, Consumer.AISIMULATE),
    Format.AGENTIC_MOONCAKE: (Consumer.AISIMULATE,),
    Format.BAILIAN: (Consumer.AIPERF,),
    Format.ORACLE_GENERAL: (Consumer.LIBCACHESIM,),
    Format.PARQUET: (Consumer.KV_PIPELINE,),
}
"""Format to those who read it."""
