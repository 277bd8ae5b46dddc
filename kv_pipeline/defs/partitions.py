"""Partitions. Keys are registered by the asset that finds them; a run handles a range of many."""

from __future__ import annotations

from typing import Final

import dagster as dg

DATABASES: Final = dg.DynamicPartitionsDefinition(name="databases")
CONVERSATIONS: Final = dg.DynamicPartitionsDefinition(name="conversations")
ONE_RUN: Final = dg.BackfillPolicy.single_run()
