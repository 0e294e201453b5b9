"""Benchmarks: a file a system, `studies` for one-question probes, `lib` for what they share, rows in `results`."""
