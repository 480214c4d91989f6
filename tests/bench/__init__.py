"""Benches: tests/bench/NAME.py yields rows for `python -m jobs.bench NAME`."""
