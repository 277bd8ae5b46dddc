"""The functional core: no Dagster, no file system beyond the shipped vocabulary, no clock, no random."""
