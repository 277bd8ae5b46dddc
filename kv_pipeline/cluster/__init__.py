"""Runs on many machines: Celery workers, a lease that tells a lost one, and who hands out the batches.

Belongs here: how runs of Dagster reach workers, and what becomes of them. Does not belong here: what a run does (that
is the assets' business) and the storage that machines share (`defs/postgres.py`).
"""
