"""Benchmarks: each compares the pipeline with a baseline in one run."""
