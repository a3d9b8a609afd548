"""Measured by hand, never asserted: `python -m tests.benchmarks`. Only ratios count, both sides in the same run."""
