"""`python libcachesim_misses.py FILE POLICY CAPACITY…`: misses by capacity, in bytes, of an oracleGeneral file."""

import json
import sys

import libcachesim


def miss_ratio(path: str, policy: str, capacity_bytes: int) -> float:
    """Of the requests of a file."""
    options = libcachesim.ReaderInitParam(ignore_obj_size=False)
    kind = libcachesim.TraceType.ORACLE_GENERAL_TRACE
    reader = libcachesim.TraceReader(trace=path, trace_type=kind, reader_init_params=options)
    ratio: float = getattr(libcachesim, policy)(cache_size=capacity_bytes).process_trace(reader)[0]
    return ratio


if __name__ == "__main__":
    path, policy, *capacities = sys.argv[1:]
    sys.stdout.write(json.dumps([miss_ratio(path, policy, int(capacity)) for capacity in capacities]))
