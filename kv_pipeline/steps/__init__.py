"""The work of each asset as a plain function of the store: what Dagster, the command line and benchmarks all call.

Each step reads tables, calls the core, checks and writes tables, and records the fingerprint it worked from.
"""
