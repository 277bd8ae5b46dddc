"""`python dynamo_replay.py FORMAT BLOCK_SIZE FILE…`: Dynamo's offline replay of each file on one large engine.

Prints for each file [requests, completed requests, prompt tokens, output tokens, share of prompt tokens reused], or why
it was refused.
"""

import json
import sys

from dynamo._core import run_mocker_trace_replay

TOTALS = ("num_requests", "completed_requests", "total_input_tokens", "total_output_tokens")


def replayed(trace_format: str, block_size: int, path: str) -> list[float] | str:
    """What the replay of a file sums up to; nothing is ever evicted."""
    engine = {
        "num_gpu_blocks": 30_000_000 // block_size,
        "block_size": block_size,
        "max_num_batched_tokens": 1 << 22,
        "max_num_seqs": 1024,
        "max_model_len": 1 << 22,
        "enable_prefix_caching": True,
    }
    try:
        result = run_mocker_trace_replay(
            [path],
            extra_engine_args={"engine": engine},
            trace_format=trace_format,
            trace_block_size=block_size,
            execution_model=None if trace_format == "mooncake" else "any",
        )
    except Exception as error:  # noqa: BLE001  (its refusals have no class of their own)
        return str(error)
    summary = dict(result.summary)
    return [*(summary[name] for name in TOTALS), summary["prefix_cache_reused_ratio"]]


if __name__ == "__main__":
    trace_format, block_size, *paths = sys.argv[1:]
    sys.stdout.write(json.dumps([replayed(trace_format, int(block_size), path) for path in paths]))
