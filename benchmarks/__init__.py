"""Benchmarks: a file a system, `studies` for one-question probes, `lib` for what they share, rows in `results`."""

import realrl  # before torch: it says how torch's threads wait

__all__ = ["realrl"]
