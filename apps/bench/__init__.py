"""Benchmarks of this suite: `python -m apps.bench`."""
