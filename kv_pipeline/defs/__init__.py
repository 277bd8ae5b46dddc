"""Dagster definitions: assets, checks, jobs, sensors and the storage of their events."""
