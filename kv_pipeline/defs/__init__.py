"""Dagster definitions: assets, checks, jobs, and the storage of their events.

Every process that opens the Dagster instance imports this package for the event storage's sake, so nothing heavy is
imported until definitions are asked for.
"""

from dagster import Definitions, definitions


@definitions
def defs() -> Definitions:
    """What `dagster dev -w workspace.yaml` loads: paths from the environment, defaults under `data/`."""
    from kv_pipeline.defs.build import build_defs

    return build_defs()
