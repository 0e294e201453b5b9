"""The benchmark of serving, in small."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs the group serve (pip install 'realrl[serve]')")


def test_everybody_decides_and_is_measured() -> None:
    from benchmarks import serving
    from benchmarks.lib.serving import HEAD, lines
    with ExitStack() as stack:
        calls, sizes, gap = serving.contestants("skip", None, stack)
        times, cold = serving.measure(calls, 20, 2)
    assert list(times) == ["10 steps, eager", "one step, eager", "one step, exported", "one step, served"] and gap < 1e-5
    assert [len(ms) for ms in times.values()] == [2, 20, 20, 20] and all(np.isfinite(ms).all() and (ms > 0).all() for ms in times.values())
    assert list(cold) == list(times) and all(ms.shape == (2, 2) and (ms > 0).all() for ms in cold.values())
    row = {"what": "skip-net", "method": "one step, exported", "parameters": sizes["one step, exported"], "calls": 20, "p50_ms": 0.1,
           "p99_ms": 0.2, "cpu_p50_ms": 0.1, "cpu_p99_ms": 0.2, "cold_ms": 0.3, "target_p99_ms": 0.3}
    assert [len(line) for line in lines([row])] == [len(HEAD)]
