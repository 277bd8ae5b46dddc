"""A landing folder that fills while a killer is about: see `benchmarks.soak.__main__`."""
